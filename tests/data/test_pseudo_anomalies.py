import numpy as np
import pytest

from anomaly3d.data.pseudo_anomalies import OUTSIDE, blob, foreign_patch, with_anomaly, write_pseudo_anomalies

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


def test_a_blob_changes_density_inside_the_brain(volumes):
    signs = set()
    for seed in range(8):
        difference = blob(volumes[0], np.random.default_rng(seed)) - volumes[0]
        changed = difference != 0
        assert 0.001 < changed.mean() < 0.2
        assert (volumes[0][changed] > OUTSIDE).all()
        assert 0.15 <= np.abs(difference).max() <= 0.6 + 1e-6
        signs.add(np.sign(difference.sum()))
    assert signs == {-1, 1}


def test_a_scan_gets_the_same_anomaly_whatever_the_others_do(volumes):
    names = ["a", "b", "c"]
    first = with_anomaly(volumes, names, 1)
    assert np.array_equal(first, with_anomaly(volumes, names, 1))
    assert not np.array_equal(first, with_anomaly(volumes, ["a", "x", "c"], 1))


def test_one_scan_alone_gets_a_blob(volumes):
    assert (with_anomaly(volumes[:1], ["a"], 0) != volumes[0]).any()


def test_files_are_made_once(tmp_path, volumes):
    import nibabel as nib

    paths = []
    for name, volume in zip("abc", volumes, strict=True):
        paths.append(str(tmp_path / f"{name}.nii.gz"))
        nib.save(nib.Nifti1Image(volume, np.diag([2.0, 2, 3, 1])), paths[-1])
    made = write_pseudo_anomalies(tmp_path, paths, list("abc"))
    image = nib.load(made[0])
    assert np.array_equal(image.affine, np.diag([2.0, 2, 3, 1]))
    assert np.array_equal(image.get_fdata(dtype=np.float32), with_anomaly(volumes, list("abc"), 0))
    before = image.get_filename(), (tmp_path / "pseudo-v1" / "a.nii.gz").stat().st_mtime_ns
    write_pseudo_anomalies(tmp_path, paths, list("abc"))
    assert before == (made[0], (tmp_path / "pseudo-v1" / "a.nii.gz").stat().st_mtime_ns)
