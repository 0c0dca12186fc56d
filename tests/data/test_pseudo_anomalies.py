from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anomaly3d.data.pseudo_anomalies import (
    KINDS,
    OUTSIDE,
    base_of,
    displaced,
    foreign_patch,
    lump,
    shell,
    with_anomaly,
    write_pseudo_anomalies,
)

SHAPE = (26, 22, 19)


@pytest.fixture
def volumes():
    """Three smooth brains in air."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(3):
        volume = np.full(SHAPE, -1, np.float32)
        volume[3:-3, 3:-3, 3:-3] = rng.normal(0, 0.2, [n - 6 for n in SHAPE]).clip(-0.9, 0.9)
        found.append(volume)
    return found


def test_a_patch_comes_from_the_other_brain_and_stays_inside(volumes):
    made = foreign_patch(volumes[0], volumes[1], np.random.default_rng(1))
    changed = made != volumes[0]
    assert 0.001 < changed.mean() < 0.2
    assert (volumes[0][changed] > OUTSIDE).all()
    assert np.abs(made[changed]).max() <= 0.9
    whole = np.isin(made[changed], volumes[1])
    assert whole.mean() > 0.1  # its middle holds the donor's own values


@pytest.mark.parametrize(("paste", "sign"), [(lump, 1), (lump, -1), (shell, 1), (shell, -1)])
def test_lumps_and_shells_change_density_inside_the_brain(volumes, paste, sign):
    for seed in range(8):
        difference = paste(volumes[0], np.random.default_rng(seed), sign) - volumes[0]
        changed = difference != 0
        assert 0.0005 < changed.mean() < 0.4
        assert (volumes[0][changed] > OUTSIDE).all()
        assert 0.15 <= np.abs(difference).max() <= 0.8 + 1e-6
        assert set(np.sign(difference[changed])) == {sign}


def test_a_shell_lies_under_the_surface(volumes):
    depth = ndimage.distance_transform_edt(volumes[0] > OUTSIDE)
    for seed in range(8):
        changed = shell(volumes[0], np.random.default_rng(seed), 1) != volumes[0]
        assert depth[changed].min() == 1
        assert depth[changed].max() < 0.1 * max(SHAPE) + 1


def test_pushed_tissue_keeps_its_densities_and_moves_outwards():
    volume = np.full((31, 31, 31), -1, np.float32)
    volume[3:-3, 3:-3, 3:-3] = np.linspace(-0.5, 0.5, 25)[:, None, None]
    for seed in range(6):
        made = displaced(volume, np.random.default_rng(seed))
        changed = np.abs(made - volume) > 1e-4
        assert 0.001 < changed.mean() < 0.3
        assert np.abs(made[changed]).max() <= 0.5 + 1e-6  # nothing new
        place = np.argwhere(changed).mean(0)[0]
        upper = changed & (np.indices(volume.shape)[0] > place + 1)
        assert (made - volume)[upper].mean() < 0  # what was nearer to the middle, which is darker there


def test_a_scan_gets_the_same_anomaly_whatever_the_others_do(volumes):
    names = ["a", "b", "c"]
    for kind in KINDS:
        first = with_anomaly(volumes, names, 1, kind)
        assert (first != volumes[1]).any()
        assert np.array_equal(first, with_anomaly(volumes, names, 1, kind))
        assert not np.array_equal(first, with_anomaly(volumes, ["a", "x", "c"], 1, kind))


def test_one_scan_alone_gets_a_lump_in_place_of_a_patch(volumes):
    made = with_anomaly(volumes[:1], ["a"], 0, "patch")
    assert ((made - volumes[0]) >= 0).all()
    assert (made != volumes[0]).any()


def test_files_are_made_once(tmp_path, volumes):
    paths = []
    for name, volume in zip("abc", volumes, strict=True):
        paths.append(str(tmp_path / f"{name}.nii.gz"))
        nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2, 3, 1])), paths[-1])
    made = write_pseudo_anomalies(tmp_path, paths, list("abc"))
    assert len(made) == len(set(made["scan_id"])) == 3 * len(KINDS)
    assert [base_of(name) for name in made["scan_id"]] == [c for c in "abc" for _ in KINDS]
    row = made[made["scan_id"] == "b~dark_shell"].iloc[0]
    image = nib.load(row["image"])
    assert np.array_equal(image.affine, np.diag([2.0, 2, 3, 1]))
    assert np.array_equal(image.get_fdata(dtype=np.float32), with_anomaly(volumes, list("abc"), 1, "dark_shell"))
    before = [Path(p).stat().st_mtime_ns for p in made["image"]]
    again = write_pseudo_anomalies(tmp_path, paths, list("abc"))
    assert before == [Path(p).stat().st_mtime_ns for p in again["image"]]


def test_of_a_scan_that_left_the_split_nothing_stays(tmp_path, volumes):
    paths = [str(tmp_path / f"{name}.nii.gz") for name in "abc"]
    for path, volume in zip(paths, volumes, strict=True):
        nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
    write_pseudo_anomalies(tmp_path, paths, list("abc"))
    made = write_pseudo_anomalies(tmp_path, paths[:2], list("ab"))
    patch = nib.load(made[made["scan_id"] == "a~patch"]["image"].iloc[0]).get_fdata(dtype=np.float32)
    assert np.array_equal(patch, with_anomaly(volumes[:2], list("ab"), 0, "patch"))
