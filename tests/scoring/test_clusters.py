from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from anomaly3d.errors import UserError
from anomaly3d.runs.folder import PhaseFolder, Trained
from anomaly3d.scoring.anomaly_maps import RawMaps
from anomaly3d.scoring.calibration import Calibration, clusters_of, healthy_file, largest_masses, sites_of
from anomaly3d.scoring.clusters import own_grid_clusters
from anomaly3d.scoring.way_back import Found, own_grid_maps

LEVEL = 2.0


def test_clusters_are_of_one_sign_hang_together_at_corners_and_are_sorted_by_mass():
    z = np.zeros((7, 6, 5))
    z[1, 1, 1], z[2, 2, 2] = 5, 3  # touch at a corner: mass (3 + 1) * 0.5
    z[3, 3, 3] = -9  # touches, but of the other sign: 7 * 0.5
    z[6, 0, 4] = 2  # at the level: mass 0
    z[5, 5, 0] = 1.9
    labels, mass = clusters_of(z, LEVEL, 0.5)
    np.testing.assert_allclose(mass, [3.5, 2.0, 0.0])
    assert labels[3, 3, 3] == 1
    assert labels[1, 1, 1] == labels[2, 2, 2] == 2
    assert labels[6, 0, 4] == 3
    assert (labels > 0).sum() == 4
    labels, mass = clusters_of(np.zeros((3, 4, 5)), LEVEL, 0.5)
    assert not labels.any()
    assert len(mass) == 0


class Preprocessor:
    per_unit, stored = 60.0, np.int16

    def to_physical(self, x):
        return 40 + 60 * x


@pytest.fixture
def scan():
    """A brain in MNI space with a dense lump in the left frontal lobe, a dark one in the right cerebellum, a crumb; and
    a scan of it that lies 7 mm further and has thick slices."""
    affine = np.diag([3.0, 3, 3, 1])
    affine[:3, 3] = [-90, -108, -72]
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in (61, 61, 48)], indexing="ij"), -1) * 3.0 + affine[:3, 3]
    brain = ((grid / [68, 84, 62]) ** 2).sum(-1) < 1

    def near(centre, radius):
        return ((grid - centre) ** 2).sum(-1) < radius**2

    z = np.zeros(brain.shape)
    z[near((-36, 30, 20), 10)] = 6.0
    z[near((24, -48, -30), 7)] = -5.0
    z[near((30, 30, 30), 2)] = 4.0
    image = np.where(brain, -0.1 + 0.05 * z, -1.0)
    reconstruction = np.where(brain, -0.1, -1.0)
    shift = np.eye(4)
    shift[:3, 3] = [7, -4, 2]
    found = Found(image, brain.astype(np.uint8), reconstruction, {"standardised": z}, affine, shift)
    own = np.diag([-1.5, 1.5, 5.0, 1])
    own[:3, 3] = [100, -120, -78]
    header = nib.nifti1.Nifti1Image(np.full((130, 130, 32), 34.0, np.float32), own)
    return header, found


def calibration(**more):
    masses = {"standardised": [0.0, 1.0, 2.0, 30.0]}
    return Calibration(
        "own", "total", 0.1, [1.0, 2, 3, 4], 10, {"standardised": LEVEL}, **{"cluster_masses": masses, **more}
    )


def test_clusters_lie_on_the_scan_with_their_names_volumes_and_p_values(scan):
    original, found = scan
    maps = own_grid_maps(original, found, Preprocessor())
    made = own_grid_clusters(original, found, maps, calibration(), 0.3)
    table = made.table.set_index("cluster")
    assert list(table["name"]) == ["left frontal", "right cerebellum"]  # the crumb of 0.1 ml is left out
    labels, mask = (np.asarray(i.dataobj) for i in (made.labels, made.mask))
    assert labels.dtype == np.int16
    assert mask.dtype == np.uint8
    assert ((labels > 0) == mask).all()
    np.testing.assert_allclose(made.labels.affine, original.affine)
    for label, centre, radius in ((1, (-36, 30, 20), 10), (2, (24, -48, -30), 7)):
        places = nib.affines.apply_affine(original.affine, np.argwhere(labels == label))
        np.testing.assert_allclose(places.mean(0), np.add(centre, (7, -4, 2)), atol=2.0)
        row = table.loc[label]
        np.testing.assert_allclose(row[["x", "y", "z"]].astype(float), places.mean(0), atol=0.01)
        np.testing.assert_allclose(row[["mni_x", "mni_y", "mni_z"]].astype(float), centre, atol=1.0)
        assert row["ml"] == pytest.approx(4 / 3 * np.pi * radius**3 / 1000, rel=0.35)
        assert row["ml"] == pytest.approx((labels == label).sum() * 1.5 * 1.5 * 5 / 1000, abs=0.001)
        assert row["mean_value"] == 34
    assert table["peak"].tolist() == [6, -5]
    assert 12 < table["mean_difference"][1] <= 18  # 0.05 * 6 * 60 HU, less at the rim
    assert -15 <= table["mean_difference"][2] < -9
    voxels = (found.maps["standardised"] == 6).sum()
    assert table["mass"][1] == pytest.approx(voxels * (6 - LEVEL) * 0.027, abs=0.001)
    assert 2 < table["mass"][2] < 30
    assert table["p_value"].tolist() == [
        pytest.approx(2 / 5 if table["mass"][1] <= 30 else 1 / 5),
        pytest.approx(2 / 5),
    ]


def test_no_cluster_is_smaller_on_the_scan_than_asked_for(scan):
    """The lump in the cerebellum has more ml on the prepared grid than on the scan, whose head is smaller."""
    original, found = scan
    small = replace(found, mni_to_scan=found.mni_to_scan @ np.diag([0.8, 0.8, 0.8, 1]))
    maps = own_grid_maps(original, small, Preprocessor())
    every = own_grid_clusters(original, small, maps, calibration(), 0.3).table
    assert len(every) == 2
    prepared = (found.maps["standardised"] == -5).sum() * 0.027
    between = (every["ml"].min() + prepared) / 2
    assert every["ml"].min() < between < prepared
    made = own_grid_clusters(original, small, maps, calibration(), between)
    assert made.table["name"].tolist() == ["left frontal"]
    assert set(np.unique(np.asarray(made.labels.dataobj))) == {0, 1}


def test_what_is_not_known_is_left_empty(scan):
    original, found = scan
    maps = own_grid_maps(original, found, Preprocessor())
    assert own_grid_clusters(original, found, maps, calibration(cluster_masses={}), 0.3).table["p_value"].isna().all()
    unlocked = Calibration("own", "total", 0.1, [1.0], 10, {})
    assert own_grid_clusters(original, found, maps, unlocked, 0.3) is None
    nothing = own_grid_clusters(original, found, maps, calibration(), 50.0)
    assert nothing.table.empty
    assert not np.asarray(nothing.mask.dataobj).any()
    assert "name" in nothing.table


def test_a_calibration_keeps_its_clusters_and_old_ones_are_read(tmp_path):
    made = calibration()
    trained = Trained("fanogan", "finetune", PhaseFolder(tmp_path), {})
    trained.folder.model.write_bytes(b"weights")
    file, usual = tmp_path / "calibration" / "own.json", healthy_file(tmp_path, "own")
    usual.parent.mkdir()
    usual.write_bytes(b"statistics")
    made.save(file, trained.digest(), usual)
    assert Calibration.load(file, trained, usual) == made
    assert sites_of(tmp_path) == ["own"]
    file.with_name(".123.utrecht.json").touch()  # of a process that was killed while it wrote
    assert sites_of(tmp_path) == ["own"]
    usual.write_bytes(b"statistics of a calibration that was killed before it wrote its scores")
    with pytest.raises(UserError, match=r"own.json and .*own.npz are of two calibrations.*: calibrate own again"):
        Calibration.load(file, trained, usual)
    usual.write_bytes(b"statistics")
    trained.folder.model.write_bytes(b"other weights")
    with pytest.raises(
        UserError, match=r"own.json holds thresholds of another model than .*model.pt is: calibrate own"
    ):
        Calibration.load(file, trained, usual)
    np.testing.assert_allclose(made.cluster_p_values("standardised", np.array([0.0, 2, 31])), [1, 3 / 5, 1 / 5])
    weighted = calibration(weights=[0.5, 0.5, 1, 1])
    np.testing.assert_allclose(weighted.cluster_p_values("standardised", np.array([1.5])), [3 / 4])


def test_the_largest_mass_of_a_healthy_scan(monkeypatch):
    class Scan:
        def read(self):
            return RawMaps({"residual": np.ones((4, 4, 4))}, np.ones((4, 4, 4), bool))

        def voxel_ml(self):
            return 0.5

    z = np.zeros((4, 4, 4))
    z[0, 0, 0], z[3, 3, 2:] = 4, -3
    monkeypatch.setattr("anomaly3d.scoring.calibration.standardised_maps", lambda raw, healthy: {"m": z + healthy})

    class Healthy(float):
        def without(self, scans):
            return Healthy(self - len(scans))

    assert largest_masses(Scan(), Healthy(0), {"m": 2.0}, []) == {"m": 1.0}
    assert largest_masses(Scan(), Healthy(0), {"m": 2.0}, [Scan()]) == {"m": pytest.approx(2.0)}
    assert largest_masses(Scan(), Healthy(0), {"m": 9.0}, []) == {"m": 0.0}
