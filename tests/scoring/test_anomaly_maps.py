"""What is usual in healthy scans, as a file."""

import pickle

import numpy as np
import pytest

from anomaly3d.errors import UserError
from anomaly3d.scoring.anomaly_maps import Healthy
from tests.malice import Payload


def test_a_file_of_healthy_statistics_that_holds_code_is_refused(tmp_path):
    path, payload = tmp_path / "own.npz", Payload(tmp_path / "ran")
    np.savez(path, count=np.array(3), brains=np.array([payload], object))
    with pytest.raises(UserError, match=r"own\.npz is damaged: run"):
        Healthy.load(path)
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match="damaged"):
        Healthy.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))  # an array where an archive of them belongs
    with pytest.raises(UserError, match="damaged"):
        Healthy.load(path)
    assert not (tmp_path / "ran").exists()
