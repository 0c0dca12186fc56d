"""Two real heads through all steps. They are not in the repository; see tests/conftest.py."""

import shutil

import nibabel as nib
import numpy as np
import pytest

from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing.base import Companions
from anomaly3d.scans.dicom import read_dicom
from anomaly3d.scans.readers import read_ct
from anomaly3d.scans.volume import Volume, resample

HEADS = ("ct_head.nii.gz", "ge_tilt18p5_deskewed_4mm.nii.gz")


@pytest.mark.parametrize("name", HEADS)
def test_a_real_head_comes_out_in_mni_space_without_its_skull(scans, ncct, name):
    prepared = ncct.prepare(read_ct(scans / name), Companions())
    assert ncct.judge(prepared.quality) == []
    image, mask = prepared.image, prepared.brain_mask > 0
    assert image.shape == (64, 64, 64)
    assert image.min() == -1
    assert (image[~mask] < -0.4).mean() > 0.97  # nothing but smoothing outside
    assert -0.35 < np.median(image[mask]) < 0.1  # 19 to 46 HU
    reference = nib.load(scans / "mni_reference" / "sc_brainmask_2mm_from_priors.nii.gz")
    volume = Volume(np.asarray(reference.dataobj, np.float32), reference.affine)
    expected = resample(volume, prepared.affine, (64, 64, 64)) > 0.5
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.90
    ml = np.linalg.norm(prepared.affine[:3, :3], axis=0).prod() / 1000
    hu = ncct.to_physical(image)[mask]
    assert (hu > 55).sum() * ml < 40  # bone and beam hardening: 297 and 287 ml before the rim was corrected
    assert (hu > 80).sum() * ml < 1


def test_a_tilted_and_uneven_dicom_series_is_straightened(scans, ncct):
    """Read by dcm2niix, and where the published straightened copy of the same series is, to 3 mm."""
    series = ncct.prepare(read_ct(scans / "ge_tilted_dicom"), Companions())
    assert ncct.judge(series.quality) == []
    copy = ncct.prepare(read_ct(scans / HEADS[1]), Companions())
    assert abs(series.quality["brain_ml"] - copy.quality["brain_ml"]) < 30
    both = (series.brain_mask > 0) & (copy.brain_mask > 0)
    assert np.corrcoef(series.image[both], copy.image[both])[0, 1] > 0.85


def test_a_damaged_dicom_slice_is_a_reason(scans, tmp_path):
    shutil.copytree(scans / "ge_tilted_dicom", tmp_path / "series")
    damaged = tmp_path / "series" / "09.dcm"
    damaged.chmod(0o644)
    damaged.write_bytes(b"not a slice")
    with pytest.raises(UnreadableScan, match="1 of 28 DICOM files are damaged"):
        read_dicom(tmp_path / "series")


def test_a_folder_without_dicom_is_a_reason(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no")
    with pytest.raises(UnreadableScan, match="DICOM"):
        read_dicom(tmp_path)
