"""The steps that need no registration, on small volumes with known answers."""

import gzip
import sys

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.preprocessing.crop import bounding_box
from anomaly3d.preprocessing.intensity import fill_outside, smooth_and_resize, to_unit_range
from anomaly3d.preprocessing.mask_command import check_mask_command, run_mask_command
from anomaly3d.scans.readers import read_ct
from anomaly3d.scans.volume import Volume, resample

WINDOW = (-20.0, 100.0)
AFFINE = np.array([[-7.0, 0, 0, 30.0], [0, -8.0, 0, 20.0], [0, 0, 9.0, -15.0], [0, 0, 0, 1]])


def head(shape=(21, 19, 9)):
    data = np.full(shape, -1000, np.float32)
    data[3:-3, 3:-3, 2:-2] = 900
    data[4:-4, 4:-4, 3:-2] = 35
    return data


def write(path, data, affine=AFFINE):
    nib.save(nib.Nifti1Image(data, affine), path)
    return path


def test_window_is_global_and_fixed():
    hu = np.array([-1000.0, -20, 10, 40, 70, 100, 3000])
    np.testing.assert_allclose(to_unit_range(hu, WINDOW), [-1, -1, -0.5, 0, 0.5, 1, 1])


def test_outside_of_the_mask_is_the_lower_end_and_bone_cannot_leak():
    hu = np.array([-1000.0, 40.0, 1500.0])
    np.testing.assert_allclose(fill_outside(hu, np.array([True, True, True]), WINDOW), [-20, 40, 100])
    np.testing.assert_allclose(fill_outside(hu, np.array([False, True, False]), WINDOW), [-20, 40, -20])
    np.testing.assert_allclose(fill_outside(hu, np.array([0.5, 0.25, 0]), WINDOW), [-20, -5, -20])


def test_smoothing_keeps_a_constant_and_the_mean():
    volume = Volume(np.full((24, 30, 18), 33.0, np.float32), np.diag([1.0, 1, 1, 1]))
    box = bounding_box(np.ones(volume.data.shape, bool), volume.affine)
    small = smooth_and_resize(volume, box.grid(6), 6, 33.0)
    np.testing.assert_allclose(small, 33.0, rtol=1e-5)


def test_box_grid_fills_the_box_exactly():
    mask = np.zeros((10, 12, 14), bool)
    mask[2:8, 3:9, 4:12] = True
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = [-5, -6, -7]
    box = bounding_box(mask, affine)
    np.testing.assert_allclose(box.high - box.low, [9, 9, 12])
    grid = box.grid(4)
    first, last = grid[:3, 3], grid[:3, :3] @ [3, 3, 3] + grid[:3, 3]
    half = np.diag(grid)[:3] / 2
    np.testing.assert_allclose(first - half, box.low)
    np.testing.assert_allclose(last + half, box.high)


def test_resample_there_and_back_through_an_affine():
    x, y, z = np.mgrid[:20, :22, :18].astype(np.float32)
    volume = Volume(2 * x - y + 0.5 * z, np.diag([2.0, 2, 2, 1]))
    turn = np.eye(4)
    turn[:3, 3] = [4, -2, 6]
    moved = resample(volume, volume.affine, (20, 22, 18), turn)
    # 4 mm along x is two voxels, and so on: 2 * 2 + 1 * 1 + 0.5 * 3
    np.testing.assert_allclose(moved[3:15, 3:18, 3:12], (volume.data + 4 + 1 + 1.5)[3:15, 3:18, 3:12], rtol=1e-5)


def test_scan_is_read_upright_in_hu(tmp_path):
    data = head()
    data[4, 10, 4] = 77
    scan = read_ct(write(tmp_path / "a.nii.gz", data))
    assert (np.diag(scan.affine)[:3] > 0).all()
    voxel = np.linalg.inv(scan.affine) @ AFFINE @ [4, 10, 4, 1]
    assert scan.data[tuple(np.rint(voxel[:3]).astype(int))] == 77


def test_padding_below_air_is_clipped(tmp_path):
    data = head()
    data[0] = -3000
    assert read_ct(write(tmp_path / "a.nii", data)).data.min() == -1024


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: p.write_bytes(b"not an image at all") and p, "not a NIfTI"),
        (lambda p: write(p, np.zeros((20, 20), np.float32)), "not a volume"),
        (lambda p: write(p, np.zeros((20, 20, 12, 3), np.float32)), "not a volume"),
        (lambda p: write(p, np.where(head() > 800, np.nan, head())), "NaN"),
        (lambda p: write(p, head() + 1024), "not in HU"),
        (lambda p: write(p, np.clip(head(), -1000, 80)), "not in HU"),
        (lambda p: write(p, head(), np.diag([1e-3, 1e-3, 1e-3, 1.0])), "singular"),
        (lambda p: p, "does not exist"),
    ],
)
def test_unreadable_scans_say_why(tmp_path, make, reason):
    path = tmp_path / "scan.nii"
    with pytest.raises(UnreadableScan, match=reason):
        read_ct(make(path))


def test_a_truncated_file_says_so(tmp_path):
    rng = np.random.default_rng(0)
    path = write(tmp_path / "a.nii.gz", head() + rng.normal(0, 5, (21, 19, 9)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnreadableScan, match="damaged or cut short"):
        read_ct(path)
    path.write_bytes(gzip.compress(b"short"))
    with pytest.raises(UnreadableScan):
        read_ct(path)


def test_a_mask_command_gets_the_scan_and_gives_its_mask(tmp_path):
    program = tmp_path / "strip.py"
    program.write_text(
        "import sys, nibabel as nib, numpy as np\n"
        "image = nib.load(sys.argv[1])\n"
        "nib.save(nib.Nifti1Image((image.get_fdata() > 500).astype(np.uint8), image.affine), sys.argv[2])\n"
    )
    upright = nib.as_closest_canonical(nib.nifti1.Nifti1Image(head(), AFFINE))  # as scans are read
    scan = Volume(np.asarray(upright.dataobj), upright.affine)
    command = f"{sys.executable} {program} {{input}} {{output}}"
    check_mask_command(command)
    mask = run_mask_command(command, scan)
    there = np.linalg.inv(mask.affine) @ AFFINE @ [3, 10, 4, 1]  # bone
    assert mask.data[tuple(np.rint(there[:3]).astype(int))] == 1
    assert mask.data.sum() == (head() > 500).sum()
    program.write_text(program.read_text().replace("image.affine", "np.eye(4)"))
    with pytest.raises(UnreadableScan, match="but another affine"):
        run_mask_command(command, scan)


def test_a_mask_command_that_fails_is_the_scans_reason():
    scan = Volume(head(), AFFINE)
    with pytest.raises(UnreadableScan, match="mask command failed"):
        run_mask_command(f"{sys.executable} -c 'raise SystemExit(1)' {{input}} {{output}} {{name}}", scan)
    with pytest.raises(UnreadableScan, match="no mask was written"):
        run_mask_command(f"{sys.executable} -c 'pass' {{input}} {{output}}", scan)


@pytest.mark.parametrize("command", ["strip {input}", "no-such-program-here {input} {output}"])
def test_a_mask_command_that_cannot_work_is_refused_before_any_work(command):
    with pytest.raises(UserError, match="mask_command"):
        check_mask_command(command)


def test_a_map_goes_to_the_small_grid_and_back_to_the_scan():
    """A volume that is smooth (sigma 6 mm) survives 64^3 within 2 % of its range, on an oblique anisotropic scan."""
    rng = np.random.default_rng(0)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (8, -5, 12), degrees=True).as_matrix() * (1.0, 0.95, 1.05)
    turn[:3, 3] = (5, -8, 12)
    mni = np.diag([2.4, 2.9, 2.5, 1.0])
    mni[:3, 3] = (-75, -110, -70)
    scan = np.diag([0.98, 0.98, 4.5, 1.0])
    scan[:3, 3] = (-120, -130, -70)
    shape = (230, 230, 40)
    noise = rng.standard_normal(shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(noise, np.array([6, 6, 6]) / np.diag(scan)[:3])
    small = resample(Volume(smooth, scan), mni, (64, 64, 64), turn)
    inside = resample(Volume(np.ones(shape, np.float32), scan), mni, (64, 64, 64), turn) > 0.99
    back = resample(Volume(small, mni), scan, shape, np.linalg.inv(turn))
    whole = resample(Volume(inside.astype(np.float32), mni), scan, shape, np.linalg.inv(turn)) > 0.99
    assert whole.mean() > 0.2
    assert np.abs(back - smooth)[whole].mean() <= 0.02 * np.ptp(smooth[whole])
