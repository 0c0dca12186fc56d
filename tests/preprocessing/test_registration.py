import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from anomaly3d.cohorts.phantom.generate import best_affine, generate
from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing import registration
from anomaly3d.preprocessing.registration import register
from anomaly3d.preprocessing.template import build_template, load_template
from anomaly3d.preprocessing.volume import Volume, resample


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return load_template(build_template(tmp_path_factory.mktemp("template")))


def test_a_known_affine_of_the_template_is_found(template):
    hu, inner_table = template
    turn = np.deg2rad(8)
    known = np.eye(4)
    known[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    known[:3, :3] *= 0.95
    known[:3, 3] = [6, -9, 40]
    affine = np.diag([2.0, 2, 3, 1])
    affine[:3, 3] = [-100, -140, -60]
    scan = Volume(resample(hu, affine, (100, 140, 70), np.linalg.inv(known), -1000), affine)
    found = register(scan, hu, inner_table, 3.0, 0.2, 0.5)
    brain = np.argwhere(inner_table.data < 0)[::50] @ hu.affine[:3, :3].T + hu.affine[:3, 3]
    points = np.c_[brain, np.ones(len(brain))].T
    error = np.linalg.norm(((found.mni_to_scan - known) @ points)[:3], axis=0)
    assert error.mean() < 1.0  # mm
    assert found.score > 0.9


def test_a_phantom_is_registered_to_a_few_millimetres(template):
    hu, inner_table = template
    phantom = generate((3, 3), None, matrix=128, slices=36)
    scan = Volume(phantom.hu.astype(np.float32), phantom.affine)
    found = register(scan, hu, inner_table, 3.0, 0.2, 0.5)
    brain = np.argwhere(inner_table.data < 0)[::50] @ hu.affine[:3, :3].T + hu.affine[:3, 3]
    points = np.c_[brain, np.ones(len(brain))].T
    error = np.linalg.norm(((found.mni_to_scan - best_affine(phantom.subject, phantom.scan)) @ points)[:3], axis=0)
    assert error.mean() < 4.0  # mm


@pytest.mark.parametrize("turn", [(0, 30, 0)])
def test_a_head_turned_by_30_degrees_is_found(template, turn):
    hu, inner_table = template
    phantom = generate((3, 4), None, matrix=128, slices=36)
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    scan = Volume(phantom.hu.astype(np.float32), turned @ phantom.affine)
    found = register(scan, hu, inner_table, 3.0, 0.2, 0.5)
    brain = np.argwhere(inner_table.data < 0)[::50] @ hu.affine[:3, :3].T + hu.affine[:3, 3]
    points = np.c_[brain, np.ones(len(brain))].T
    error = np.linalg.norm(
        ((found.mni_to_scan - turned @ best_affine(phantom.subject, phantom.scan)) @ points)[:3], axis=0
    )
    assert error.mean() < 4.0  # mm


def test_a_start_that_loses_the_head_does_not_end_the_search(template, monkeypatch):
    hu, inner_table = template
    calls = []

    def optimise(fixed, mask, moving, start, shrinks, share):
        calls.append(start)
        if len(calls) == 1:
            raise RuntimeError("all samples map outside moving image buffer")

    monkeypatch.setattr(registration, "optimise", optimise)
    found = register(hu, hu, inner_table, 3.0, 0.2, 2.0)
    assert len(calls) == 1 + 2 * len(registration.OTHER_STARTS)
    assert np.isfinite(found.score)


def test_no_start_that_leads_anywhere_is_a_reason(template, monkeypatch):
    def optimise(*_):
        raise RuntimeError("all samples map outside moving image buffer")

    hu, inner_table = template
    monkeypatch.setattr(registration, "optimise", optimise)
    with pytest.raises(UnreadableScan, match="every start"):
        register(hu, hu, inner_table, 3.0, 0.2, 0.5)
