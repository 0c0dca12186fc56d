from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from anomaly3d.cohorts.phantom.cohort import make_cohort, plan
from anomaly3d.cohorts.phantom.generate import best_affine, generate, write_phantom
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.cohorts.phantom.subject import draw_subject

SIZE = dict(matrix=72, slices=20)


@pytest.fixture(scope="module")
def healthy():
    return generate((5, 0), [], **SIZE)


def test_a_healthy_head_has_the_densities_of_one(healthy):
    hu, inside = healthy.hu, healthy.intracranial > 0
    assert hu.shape == (72, 72, 20)
    assert hu.dtype == np.int16
    assert np.median(hu[0]) < -900  # air at the edge of the view
    assert 25 < np.median(hu[inside]) < 42  # brain
    assert (hu > 800).mean() > 0.01  # bone
    assert healthy.lesion.sum() == 0
    ml = inside.sum() * abs(np.linalg.det(healthy.affine)) / 1000
    assert 1100 < ml < 2200


def test_the_brain_is_not_mirror_symmetric(healthy):
    warp = healthy.subject.brain_warp.numpy()
    mirrored = warp[:, ::-1] * np.array([-1, 1, 1]).reshape(3, 1, 1, 1)
    assert np.abs(warp - mirrored).mean() > 1.0  # mm


@pytest.mark.parametrize("kind", TYPES)
def test_a_bleed_is_bright_inside_the_head_and_moves_the_brain(kind):
    phantom = generate((5, 1), [kind], **SIZE)
    lesion = phantom.lesion > 0
    ml = lesion.sum() * abs(np.linalg.det(phantom.affine)) / 1000
    assert 0.5 < ml < 150
    assert (phantom.intracranial[lesion] > 0).mean() > 0.95
    assert np.median(phantom.hu[lesion]) > np.median(phantom.hu[phantom.intracranial > 0]) + 15
    near = phantom.lesion.any(2)[..., None] & (phantom.lesion == 0) & (phantom.intracranial > 0)
    assert near.any()


def test_one_seed_gives_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        write_phantom(tmp_path / folder, "x", (1, 2, 3), "subdural", **SIZE)
    for kind in ("ct", "lesion", "intracranial"):
        first, second = ((tmp_path / f / kind / "x.nii.gz").read_bytes() for f in ("a", "b"))
        assert first == second
    other = generate((1, 2, 4), ["subdural"], **SIZE)
    assert not np.array_equal(other.hu, nib.load(tmp_path / "a" / "ct" / "x.nii.gz").get_fdata())


def test_seeds_do_not_collide_and_splits_hold_what_they_say():
    table = plan({"train": 3, "validation": 2, "calibration": 1, "test_normal": 2, "test_lesion": 4}, seed=9)
    assert table["seed"].nunique() == table["scan_id"].nunique() == 12
    assert (table[table["label"] == "1"]["split"] == "test").all()
    assert set(table["lesions"]) == {"", *TYPES}


def test_age_widens_the_ventricles():
    subjects = [draw_subject(np.random.default_rng(i)) for i in range(60)]
    old = [s.look.ventricle for s in subjects if s.age > 70]
    young = [s.look.ventricle for s in subjects if s.age < 45]
    assert np.mean(old) > np.mean(young) + 0.5  # mm


def test_a_finished_cohort_is_not_made_again(tmp_path):
    counts = {"train": 1, "test_lesion": 1}
    manifest = make_cohort("tiny", counts, 0, 48, 16, tmp_path, workers=1)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")}
    assert len(before) == 5
    assert make_cohort("tiny", counts, 0, 48, 16, tmp_path, workers=1) == manifest
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.nii.gz")} == before


def test_true_affine_is_the_pose_where_nothing_is_warped(healthy):
    still = replace(healthy.subject, skull_warp=torch.zeros_like(healthy.subject.skull_warp))
    np.testing.assert_allclose(best_affine(still, healthy.scan), healthy.scan.pose, atol=1e-3)
    warped = best_affine(healthy.subject, healthy.scan)
    assert 1e-3 < np.abs(warped - healthy.scan.pose).max() < 10  # mm
