"""What is usual in healthy scans, as a file."""

import pickle

import numpy as np
import pandas as pd
import pytest

from anomaly3d.errors import UserError
from anomaly3d.scoring.anomaly_maps import RECONSTRUCTION, Healthy, maps_of
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


def test_files_of_a_scan_know_its_age_where_the_manifest_does(tmp_path):
    (tmp_path / RECONSTRUCTION).mkdir()
    rows = pd.DataFrame({"scan_id": ["a", "b"], "image": "i", "brain_mask": "m", "age": ["61.5", ""]})
    assert [scan.age for scan in maps_of(rows, tmp_path)] == [61.5, None]
    assert [scan.age for scan in maps_of(rows.drop(columns="age"), tmp_path)] == [None, None]
