import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anomaly3d.atlas.template import build_template, load_template
from anomaly3d.cohorts.phantom.faults import wrong_orientation
from anomaly3d.cohorts.phantom.generate import best_affine, generate
from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing import registration
from anomaly3d.preprocessing.quality import turn
from anomaly3d.preprocessing.registration import matrix_of, register, score, shift
from anomaly3d.scans.volume import Volume, resample


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return load_template(build_template(tmp_path_factory.mktemp("template")))


@pytest.fixture(scope="module")
def phantom():
    return generate((3, 3), [], matrix=128, slices=36)


def mean_error(found, true, template):
    hu, inner_table = template
    brain = np.argwhere(inner_table.data < 0)[::50] @ hu.affine[:3, :3].T + hu.affine[:3, 3]
    points = np.c_[brain, np.ones(len(brain))].T
    return np.linalg.norm(((found - true) @ points)[:3], axis=0).mean()


def turned(degrees):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    return matrix


def test_a_known_affine_of_the_template_is_found(template):
    hu, inner_table = template
    known = turned((0, 0, 8))
    known[:3, :3] *= 0.95
    known[:3, 3] = [6, -9, 40]
    affine = np.diag([2.0, 2, 3, 1])
    affine[:3, 3] = [-100, -140, -60]
    scan = Volume(resample(hu, affine, (100, 140, 70), np.linalg.inv(known), -1000), affine)
    found = register(scan, hu, inner_table, 3.0, 0.85)
    assert mean_error(found.mni_to_scan, known, template) < 0.5  # mm
    assert found.score > 0.95


@pytest.mark.parametrize("degrees", [(0, 0, 0), (30, 0, 0), (0, -30, 0), (0, 0, 30)])
def test_a_phantom_is_found_however_the_head_is_held(template, phantom, degrees):
    world = turned(degrees) @ shift(np.array([30.0, -20, 15]))
    scan = Volume(phantom.hu.astype(np.float32), world @ phantom.affine)
    found = register(scan, *template, 3.0, 0.85)
    assert mean_error(found.mni_to_scan, world @ best_affine(phantom.subject, phantom.scan), template) < 3.5  # mm
    assert found.score > 0.85


@pytest.mark.parametrize("seed", range(4))
def test_a_wrong_header_is_seen_as_a_turn(template, phantom, seed):
    hu, affine = wrong_orientation(phantom.hu, phantom.affine, np.random.default_rng(seed))
    found = register(Volume(hu.astype(np.float32), affine), *template, 3.0, 0.85)
    assert turn(found.mni_to_scan) > 60
    assert found.score > 0.85  # the head was found all the same


def test_the_score_falls_with_the_error(template, phantom):
    scan = Volume(phantom.hu.astype(np.float32), phantom.affine)
    found = register(scan, *template, 3.0, 0.85)
    assert score(scan, *template, 3.0, found.mni_to_scan) == pytest.approx(found.score, abs=1e-6)
    moved = [score(scan, *template, 3.0, found.mni_to_scan @ shift(np.array([mm, 0.0, 0]))) for mm in (0, 6, 12, 24)]
    assert (np.diff(moved) < 0).all()
    assert moved[2] < 0.7


def test_the_same_scan_gives_the_same_bits(template, phantom):
    scan = Volume(phantom.hu.astype(np.float32), phantom.affine)
    first, second = (register(scan, *template, 3.0, 0.85).mni_to_scan for _ in range(2))
    assert np.array_equal(first, second)


def test_a_poor_first_start_leads_to_others(template, phantom, monkeypatch):
    scan = Volume(phantom.hu.astype(np.float32), phantom.affine)
    calls = []
    whole = registration.fit
    monkeypatch.setattr(registration, "fit", lambda level, pose: calls.append(len(pose)) or whole(level, pose))
    register(scan, *template, 3.0, 0.85)
    assert calls == [12, 12]
    calls.clear()
    register(scan, *template, 3.0, 2.0)
    assert calls.count(6) == 1 + len(registration.OTHER_STARTS)
    assert calls.count(12) == 2 * (2 + len(registration.SIZES) + registration.REFINED)


def test_air_alone_is_no_head(template):
    scan = Volume(np.full((40, 40, 20), -1000, np.float32), np.diag([4.0, 4, 6, 1]))
    with pytest.raises(UnreadableScan, match="nothing but air"):
        register(scan, *template, 3.0, 0.85)


def test_a_pose_is_a_rotation_of_a_stretch():
    pose = np.array([0.1, -0.2, 0.3, 1.0, 2.0, 3.0, 0.1, 0.0, -0.1, 0.02, 0.0, 0.01])
    matrix = matrix_of(pose)
    stretch = np.array([[1.1, 0.02, 0], [0.02, 1, 0.01], [0, 0.01, 0.9]])
    np.testing.assert_allclose(matrix[:3, :3], Rotation.from_rotvec(pose[:3]).as_matrix() @ stretch)
    np.testing.assert_allclose(matrix[:3, 3], [50, 100, 150])
