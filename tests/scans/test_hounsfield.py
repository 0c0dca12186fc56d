"""What is not a head CT in HU says what it is; what is one is read, whatever lies around it."""

import nibabel as nib
import numpy as np
import pytest

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.readers import read_ct, read_mask, read_scan
from tests.writers import small_head


@pytest.fixture(scope="module")
def head():
    return small_head()


@pytest.fixture(scope="module")
def hu(head):
    return np.asarray(head.dataobj).clip(-1024, 3071)


def saved(path, data, affine):
    nib.save(nib.nifti1.Nifti1Image(data, affine), path)
    return path


NOT_HU = {
    "offset 1024": (lambda hu: hu + 1024, "rescale intercept"),
    "offset 1024, padded": (lambda hu: np.where(hu == hu[0, 0, 0], -2000, hu + 1024), "rescale intercept"),
    "12 bits wrapped": (lambda hu: np.where(hu < 0, hu + 4096, hu), "wrapped round"),
    "window 0 to 80": (lambda hu: np.clip(hu, 0, 80), "a window may have been applied"),
    "0 to 1": (lambda hu: np.clip((hu + 1024) / 4095, 0, 1).astype(np.float32), "not in HU"),
    "bytes": (lambda hu: ((np.clip(hu, -160, 240) + 160) * 255 / 400).astype(np.uint8), "not in HU"),
    "clipped at 0": (lambda hu: np.clip(hu, 0, None), "not in HU"),
    "offset 500": (lambda hu: hu + 500, "is there an offset"),
    "offset -200": (lambda hu: hu - 200, "is there an offset"),
    "no bone": (lambda hu: np.clip(hu, None, 200), "bone above 300"),
}


@pytest.mark.parametrize("name", NOT_HU)
def test_values_that_are_not_hu_are_refused_with_what_they_may_be(tmp_path, head, hu, name):
    change, words = NOT_HU[name]
    data = change(hu)
    data = data.astype(np.int16) if data.dtype.kind == "i" else data
    with pytest.raises(UnreadableScan, match=words):
        read_ct(saved(tmp_path / "a.nii", data, head.affine))


@pytest.mark.parametrize("factor", [0.001, 0.1, 1000.0])
def test_voxel_sizes_that_are_not_millimetres_are_refused(tmp_path, head, hu, factor):
    affine = np.diag([factor, factor, factor, 1]) @ head.affine
    with pytest.raises(UnreadableScan, match=r"millimetres|singular"):
        read_ct(saved(tmp_path / "a.nii", hu, affine))


def brain_only(hu, outside, highest=200):
    """The middle of the head, as a skull stripper leaves it."""
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, n) for n in hu.shape], indexing="ij")
    inside = (x / 0.5) ** 2 + (y / 0.6) ** 2 + ((z - 0.1) / 0.6) ** 2 < 1
    return np.where(inside, np.clip(hu, -100, highest), outside).astype(np.float32)


@pytest.mark.parametrize("outside", [-1024, 0])
def test_a_stripped_head_is_refused_with_the_switch_for_it(tmp_path, head, hu, outside):
    path = saved(tmp_path / "a.nii", brain_only(hu, outside), head.affine)
    with pytest.raises(UnreadableScan, match=r"no skull.*preprocessing\.stripped=true"):
        read_ct(path)
    assert (read_ct(path, stripped=True).data == -1024).mean() > 0.5


def test_fluid_of_the_value_around_a_stripped_brain_stays(tmp_path, head, hu):
    """Most tools put 0 there, and CSF has 0 HU as well."""
    brain = brain_only(hu, 0)
    x, y, z = (n // 2 for n in brain.shape)
    brain[x : x + 5, y : y + 5, z : z + 3] = 0
    found = read_ct(saved(tmp_path / "a.nii", brain, head.affine), stripped=True)
    assert (found.data[x : x + 5, y : y + 5, z : z + 3] == 0).all()
    assert (found.data[:3] == -1024).all()


def test_a_stripped_head_with_nothing_around_it_is_read(tmp_path, head, hu):
    path = saved(tmp_path / "a.nii", brain_only(hu, np.nan), head.affine)
    assert np.isfinite(read_ct(path, stripped=True).data).all()


@pytest.mark.parametrize("fill", [0, -1024, -2000, -3024])
def test_what_fills_corners_does_not_matter(tmp_path, head, hu, fill):
    x, y = np.meshgrid(*[np.linspace(-1, 1, n) for n in hu.shape[:2]], indexing="ij")
    filled = np.where((np.hypot(x, y) > 1)[..., None], fill, hu).astype(np.int16)
    scan = read_ct(saved(tmp_path / "a.nii", filled, head.affine))
    assert scan.data.min() >= -1024


@pytest.fixture
def scan(tmp_path, head, hu):
    return read_scan(saved(tmp_path / "scan.nii", hu, head.affine))


def test_a_mask_on_the_grid_of_its_scan_is_taken(tmp_path, scan, hu, head):
    mask = (hu > 300).astype(np.uint8)
    assert read_mask(saved(tmp_path / "m.nii", mask, head.affine), scan).data.sum() == mask.sum()
    empty = saved(tmp_path / "e.nii", np.zeros_like(mask), head.affine)
    assert read_mask(empty, scan).data.sum() == 0  # of a scan without a lesion


@pytest.mark.parametrize(("low", "high", "noise"), [(0.2, 0.9, 0), (0, 1, 1e-6), (60, 255, 0), (0, 3, 0)])
def test_of_a_mask_between_labels_half_of_them_counts(tmp_path, scan, hu, head, low, high, noise):
    """Probabilities, an interpolated mask and one with rounding errors are no labels; whole numbers are."""
    mask = np.where(hu > 300, high, low * (hu > 0)).astype(float) + noise
    mask[hu > 1000] = high - 0.1 if low > 1 else high
    found = read_mask(saved(tmp_path / "m.nii", mask.astype(np.float32), head.affine), scan)
    assert found.data.sum() == (hu > 300).sum()


def test_an_image_in_place_of_a_mask_is_refused(tmp_path, scan, hu, head):
    with pytest.raises(UnreadableScan, match="an image, not a mask"):
        read_mask(saved(tmp_path / "m.nii", hu, head.affine), scan)
    with pytest.raises(UnreadableScan, match=r"up to 0\.4, none of them above 0\.5"):
        read_mask(saved(tmp_path / "m.nii", np.where(hu > 300, 0.4, 0).astype(np.float32), head.affine), scan)
    overshot = np.where(hu > 300, 1, -0.1).astype(np.float32)  # as splines leave it
    assert read_mask(saved(tmp_path / "m.nii", overshot, head.affine), scan).data.sum() == (hu > 300).sum()


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([4.0, 4.0, 7.0, 1.0])])
def test_a_mask_of_the_scans_shape_with_another_affine_is_refused(tmp_path, scan, hu, affine):
    with pytest.raises(UnreadableScan, match=r"m\.nii has the scan's shape but another affine"):
        read_mask(saved(tmp_path / "m.nii", (hu > 300).astype(np.uint8), affine), scan)


def test_a_mask_on_another_grid_must_lie_in_the_head(tmp_path, scan, head):
    fine = head.affine @ np.diag([0.5, 0.5, 0.5, 1])
    mask = np.zeros([2 * n for n in head.shape], np.uint8)
    mask[60:70, 60:70, 20:26] = 1
    assert read_mask(saved(tmp_path / "m.nii", mask, fine), scan).data.sum() == 600
    fine[:3, 3] += 300
    with pytest.raises(UnreadableScan, match=r"does not lie on the scan: 0% of it"):
        read_mask(saved(tmp_path / "m.nii", mask, fine), scan)
