from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anomaly3d.data.pseudo_anomalies import (
    KINDS,
    base_of,
    displaced,
    foreign_patch,
    lump,
    shell,
    with_anomaly,
    write_pseudo_anomalies,
)

SHAPE = (26, 22, 19)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[3:-3, 3:-3, 3:-3] = True
BRAINS = [BRAIN] * 3


@pytest.fixture
def volumes():
    """Three smooth brains in air."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3):
        volume = np.full(SHAPE, -1, np.float32)
        volume[BRAIN] = rng.normal(0, 0.2, BRAIN.sum()).clip(-0.9, 0.9)
        found.append(volume)
    return found


def test_a_patch_comes_from_the_other_brain_and_stays_inside(volumes):
    made = foreign_patch(volumes[0], BRAIN, volumes[1], BRAIN, np.random.default_rng(1))
    changed = made != volumes[0]
    assert 0.001 < changed.mean() < 0.2
    assert BRAIN[changed].all()
    assert np.abs(made[changed]).max() <= 0.9
    whole = np.isin(made[changed], volumes[1])
    assert whole.mean() > 0.1  # its middle holds the donor's own values


@pytest.mark.parametrize(("paste", "sign"), [(lump, 1), (lump, -1), (shell, 1), (shell, -1)])
def test_lumps_and_shells_change_density_inside_the_brain(volumes, paste, sign):
    for seed in range(8):
        difference = paste(volumes[0], BRAIN, np.random.default_rng(seed), sign) - volumes[0]
        changed = difference != 0
        assert 0.0005 < changed.mean() < 0.4
        assert BRAIN[changed].all()
        assert 0.15 <= np.abs(difference).max() <= 0.8 + 1e-6
        assert set(np.sign(difference[changed])) == {sign}


def test_a_shell_lies_under_the_surface(volumes):
    depth = ndimage.distance_transform_edt(BRAIN)
    for seed in range(8):
        changed = shell(volumes[0], BRAIN, np.random.default_rng(seed), 1) != volumes[0]
        assert depth[changed].min() == 1
        assert depth[changed].max() < 0.1 * max(SHAPE) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_smoothing_around_the_brain_is_left_as_it_is(volumes, kind):
    """Prepared volumes fall to -1 over two voxels outside of the mask."""
    smooth = [np.where(BRAIN, v, ndimage.gaussian_filter(v, 1.0)).astype(np.float32) for v in volumes]
    assert (smooth[0] > -0.999).sum() > 1.3 * BRAIN.sum()
    for name in "defghij":
        changed = with_anomaly(smooth, BRAINS, [name, "b", "c"], 0, kind) != smooth[0]
        assert changed.any()
        assert BRAIN[changed].all()


def test_pushed_tissue_keeps_its_densities_and_moves_outwards():
    volume = np.full((31, 31, 31), -1, np.float32)
    volume[3:-3, 3:-3, 3:-3] = np.linspace(-0.5, 0.5, 25)[:, None, None]
    for seed in range(6):
        made = displaced(volume, volume > -1, np.random.default_rng(seed))
        changed = np.abs(made - volume) > 1e-4
        assert 0.001 < changed.mean() < 0.3
        assert np.abs(made[changed]).max() <= 0.5 + 1e-6  # nothing new
        place = np.argwhere(changed).mean(0)[0]
        upper = changed & (np.indices(volume.shape)[0] > place + 1)
        assert (made - volume)[upper].mean() < 0  # what was nearer to the middle, which is darker there


def test_a_scan_gets_the_same_anomaly_whatever_the_others_do(volumes):
    names = ["a", "b", "c"]
    for kind in KINDS:
        first = with_anomaly(volumes, BRAINS, names, 1, kind)
        assert (first != volumes[1]).any()
        assert np.array_equal(first, with_anomaly(volumes, BRAINS, names, 1, kind))
        assert not np.array_equal(first, with_anomaly(volumes, BRAINS, ["a", "x", "c"], 1, kind))


def test_one_scan_alone_gets_a_lump_in_place_of_a_patch(volumes):
    made = with_anomaly(volumes[:1], BRAINS[:1], ["a"], 0, "patch")
    assert ((made - volumes[0]) >= 0).all()
    assert (made != volumes[0]).any()


def masks(folder):
    """Files of ``BRAINS``."""
    paths = [str(folder / f"brain-{name}.nii.gz") for name in "abc"]
    for path in paths:
        if not Path(path).exists():
            nib.save(nib.Nifti1Image(BRAIN.astype(np.uint8), np.diag([2.0, 2, 3, 1])), path)
    return paths


def test_files_are_made_once(tmp_path, volumes):
    paths = []
    for name, volume in zip("abc", volumes, strict=True):
        paths.append(str(tmp_path / f"{name}.nii.gz"))
        nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2, 3, 1])), paths[-1])
    made = write_pseudo_anomalies(tmp_path, paths, masks(tmp_path), list("abc"))
    assert len(made) == len(set(made["scan_id"])) == 3 * len(KINDS)
    assert [base_of(name) for name in made["scan_id"]] == [c for c in "abc" for _ in KINDS]
    row = made[made["scan_id"] == "b~dark_shell"].iloc[0]
    image = nib.load(row["image"])
    assert np.array_equal(image.affine, np.diag([2.0, 2, 3, 1]))
    assert np.array_equal(
        image.get_fdata(dtype=np.float32), with_anomaly(volumes, BRAINS, list("abc"), 1, "dark_shell")
    )
    before = [Path(p).stat().st_mtime_ns for p in made["image"]]
    again = write_pseudo_anomalies(tmp_path, paths, masks(tmp_path), list("abc"))
    assert before == [Path(p).stat().st_mtime_ns for p in again["image"]]


def test_of_a_scan_that_left_the_split_nothing_stays(tmp_path, volumes):
    paths = [str(tmp_path / f"{name}.nii.gz") for name in "abc"]
    for path, volume in zip(paths, volumes, strict=True):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    write_pseudo_anomalies(tmp_path, paths, masks(tmp_path), list("abc"))
    made = write_pseudo_anomalies(tmp_path, paths[:2], masks(tmp_path)[:2], list("ab"))
    patch = nib.load(made[made["scan_id"] == "a~patch"]["image"].iloc[0]).get_fdata(dtype=np.float32)
    assert np.array_equal(patch, with_anomaly(volumes[:2], BRAINS[:2], list("ab"), 0, "patch"))
