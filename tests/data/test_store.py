import pickle

import nibabel as nib
import numpy as np
import pytest
import torch

from anomaly3d.data import store
from anomaly3d.data.store import load_stack
from anomaly3d.errors import UserError
from tests.malice import Payload


@pytest.fixture
def paths(tmp_path):
    rng = np.random.default_rng(0)
    found = []
    for i in range(3):
        found.append(str(tmp_path / f"{i}.nii.gz"))
        nib.save(nib.Nifti1Image(rng.normal(size=(6, 5, 4)).astype(np.float32), np.eye(4)), found[-1])
    return found


def test_memory_mapped_volumes_are_those_in_memory(paths, tmp_path, capsys):
    cache = tmp_path / "cache"
    memory = load_stack(paths, cache, 1.0, "train")
    assert memory.shape == (3, 1, 6, 5, 4)
    assert not cache.exists()
    mapped = load_stack(paths, cache, 0.0, "train")
    assert "memory-mapped" in capsys.readouterr().out
    assert torch.equal(mapped, memory)
    np.testing.assert_array_equal(memory[1, 0], nib.load(paths[1]).get_fdata(dtype=np.float32))


def test_a_memory_mapped_array_is_made_once_and_anew_for_other_files(paths, tmp_path):
    cache = tmp_path / "cache"
    load_stack(paths, cache, 0.0, "train")
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns
    load_stack(paths, cache, 0.0, "train")
    assert made.stat().st_mtime_ns == before
    nib.save(nib.Nifti1Image(np.ones((6, 5, 4), np.float32), np.eye(4)), paths[0])
    assert (load_stack(paths, cache, 0.0, "train")[0] == 1).all()
    assert len(list(cache.iterdir())) == 2


def test_processes_of_a_machine_share_its_memory(paths, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "free_memory", lambda: 4 * 3 * 6 * 5 * 4 * 2)  # twice the stack
    load_stack(paths, tmp_path / "one", None, "train")
    assert not (tmp_path / "one").exists()
    load_stack(paths, tmp_path / "two", None, "train", processes=2)
    assert (tmp_path / "two").exists()


def test_a_large_stack_is_told_before_it_is_read(paths, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(store, "LARGE", 100.0)
    load_stack(paths, tmp_path, None, "train")
    assert "3 train volumes: 0.0 GB of memory" in capsys.readouterr().out


def test_no_volumes_are_an_empty_stack(tmp_path):
    assert len(load_stack([], tmp_path, None, "test")) == 0


def test_a_memory_mapped_array_that_holds_code_or_other_volumes_is_refused(paths, tmp_path):
    cache = tmp_path / "cache"
    load_stack(paths, cache, 0.0, "train")
    (made,) = cache.iterdir()
    np.save(made, np.array([Payload(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(UserError, match=f"{made.name} .*remove it"):
        load_stack(paths, cache, 0.0, "train")
    made.write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(UserError, match="remove it"):
        load_stack(paths, cache, 0.0, "train")
    np.save(made, np.zeros((3, 1, 6, 5, 5), np.float32))
    with pytest.raises(UserError, match="other volumes"):
        load_stack(paths, cache, 0.0, "train")
    assert not (tmp_path / "ran").exists()
    made.unlink()
    assert load_stack(paths, cache, 0.0, "train").shape == (3, 1, 6, 5, 4)
