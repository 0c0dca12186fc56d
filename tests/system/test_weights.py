"""Files of weights hold nothing that runs."""

import pytest
import torch

from anomaly3d.errors import UserError
from anomaly3d.system.weights import read_weights
from tests.malice import Payload


def test_weights_come_back(tmp_path):
    weights = {"state": {"a": torch.arange(6.0).reshape(2, 3)}, "config": {"n": [1, None, "x"]}}
    torch.save(weights, tmp_path / "w.pt")
    found = read_weights(tmp_path / "w.pt", "make it anew")
    assert torch.equal(found["state"]["a"], weights["state"]["a"])
    assert found["config"] == weights["config"]


def test_what_could_run_does_not(tmp_path):
    torch.save({"state": Payload(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(
        UserError, match=r"w\.pt .*make it anew \(what is not a weight could be code, and was not run\)"
    ):
        read_weights(tmp_path / "w.pt", "make it anew")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut short"])
def test_other_files_are_a_sentence(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        read_weights(tmp_path / "w.pt", "make it anew")
    torch.save(torch.ones(3), tmp_path / "w.pt")
    with pytest.raises(UserError, match="Tensor"):
        read_weights(tmp_path / "w.pt", "make it anew")
