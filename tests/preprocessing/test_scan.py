"""What comes with a scan is read, and must belong to it."""

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from anomaly3d.errors import PassingTrouble
from anomaly3d.preprocessing.outcome import Sources, finished
from anomaly3d.preprocessing.scan import lost_scan, prepare_scan, read_companions
from anomaly3d.scans.readers import UnreadableScan
from anomaly3d.scans.volume import Volume
from tests.writers import small_head

AFFINE = np.diag([2.0, 3.0, 5.0, 1.0])


@pytest.fixture
def written(tmp_path):
    """A head in air, and what a manifest names beside it: two masks and a displaced pose."""
    data = np.full((20, 15, 9), -1000.0, np.float32)
    data[4:16, 3:12, 2:7] = 30
    masks = {"brain_mask": np.s_[5:15, 4:11, 3:6], "lesion_mask": np.s_[6:8, 5:9, 4:5]}
    for name, place in masks.items():
        mask = np.zeros(data.shape, np.uint8)
        mask[place] = 1
        nib.save(nib.Nifti1Image(mask, AFFINE), tmp_path / f"{name}.nii.gz")
    np.savetxt(tmp_path / "pose.txt", np.diag([1.0, 2.0, 3.0, 1.0]))
    paths = {name: str(tmp_path / f"{name}.nii.gz") for name in masks}
    sources = Sources("a", str(tmp_path / "a.nii.gz"), transform_fault=str(tmp_path / "pose.txt"), **paths)
    return Volume(data, AFFINE), masks, sources


def test_each_file_goes_to_its_place(written, ncct):
    scan, masks, sources = written
    found = read_companions(sources, scan, ncct)
    assert found.brain_mask is not None
    assert (list(found.masks), found.twin) == (["lesion_mask"], None)
    for volume, name in ((found.brain_mask, "brain_mask"), (found.masks["lesion_mask"], "lesion_mask")):
        assert volume.data[masks[name]].all()
        assert volume.data.sum() == volume.data[masks[name]].size
        assert np.array_equal(volume.affine, AFFINE)
    assert np.array_equal(found.transform_fault, np.diag([1.0, 2.0, 3.0, 1.0]))
    nothing = read_companions(Sources("a", sources.image), scan, ncct)
    assert (nothing.brain_mask, nothing.masks, nothing.transform_fault) == (None, {}, None)


@pytest.mark.parametrize("name", ["brain_mask", "lesion_mask"])
def test_a_mask_on_another_grid_that_lies_in_the_air_is_refused(written, ncct, name):
    scan, _, sources = written
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.uint8), AFFINE), getattr(sources, name))
    with pytest.raises(UnreadableScan, match=f"its mask {name}.nii.gz"):
        read_companions(sources, scan, ncct)


def test_a_scan_that_killed_its_worker_is_known_again_by_its_files(written):
    _, _, sources = written
    outcome = lost_scan((sources, Path("data"), None), "it was killed")
    assert outcome.unreadable == "this program could not finish it: it was killed"
    assert (outcome.scan_id, outcome.source, outcome.files) == ("a", sources.fingerprint(Path("data")), {})


def test_what_the_scan_is_not_to_blame_for_is_tried_again(written, ncct, tmp_path, monkeypatch):
    """A disk or a program beside that fails, and files that came while it was prepared."""
    sources, out = Sources("a", str(tmp_path / "a.nii.gz")), tmp_path / "data" / "cohort" / "hash"
    nib.save(small_head(), sources.image)
    read = ncct.read

    def fail(path):
        raise PassingTrouble("the disk failed")

    monkeypatch.setattr(ncct, "read", fail)
    assert prepare_scan(sources, out, ncct).unreadable == "the disk failed"
    assert finished(sources, out) is None

    def late(path):
        scan = read(path)
        os.utime(path)
        return scan

    monkeypatch.setattr(ncct, "read", late)
    assert not prepare_scan(sources, out, ncct).unreadable
    assert finished(sources, out) is None
    monkeypatch.setattr(ncct, "read", read)
    prepare_scan(sources, out, ncct)
    assert finished(sources, out)
