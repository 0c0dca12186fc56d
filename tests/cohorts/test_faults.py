import numpy as np
import pytest
import torch

from anomaly3d.cohorts.phantom.faults import FAULTS, transform_fault
from anomaly3d.cohorts.phantom.generate import generate
from anomaly3d.cohorts.phantom.tomography import project, reconstruct


@pytest.fixture(scope="module")
def phantom():
    return generate((6, 0), [], matrix=64, slices=21)


def apply(phantom, kind, seed=0):
    return FAULTS[kind](phantom.hu, phantom.affine, np.random.default_rng(seed))


def test_a_disc_comes_back_from_its_projections():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = (((x - 31.5) ** 2 + (y - 27.0) ** 2).sqrt() < 15).float()[None]
    assert float(project(disc)[0].sum(1).std() / disc.sum()) < 0.01  # every view holds the whole mass
    back = reconstruct(project(disc))
    assert np.corrcoef(back.ravel(), disc.ravel())[0, 1] > 0.97
    assert float(back[disc > 0].mean()) == pytest.approx(1, abs=0.05)


def test_truncated_scans_lose_slices_and_keep_the_others_in_place(phantom):
    for seed in range(4):
        hu, affine = apply(phantom, "truncated", seed)
        lost = phantom.hu.shape[2] - hu.shape[2]
        assert 0.25 <= lost / phantom.hu.shape[2] <= 0.5
        first = int(np.rint(np.linalg.inv(phantom.affine) @ affine[:, 3])[2])
        np.testing.assert_array_equal(hu, phantom.hu[..., first : first + hu.shape[2]])


def test_a_wrong_header_changes_no_voxel_value(phantom):
    hu, _ = apply(phantom, "wrong_orientation", 1)
    np.testing.assert_array_equal(np.sort(hu.ravel()), np.sort(phantom.hu.ravel()))


@pytest.mark.parametrize("kind", ["low_dose", "motion", "streaks"])
def test_artefacts_disturb_the_brain_but_not_its_density(phantom, kind):
    hu, affine = apply(phantom, kind)
    brain = (phantom.intracranial > 0) & (np.abs(phantom.hu - 30) < 40)
    change = (hu.astype(float) - phantom.hu)[brain]
    assert np.abs(change).mean() > 2
    assert abs(np.median(change)) < 12
    assert np.array_equal(affine, phantom.affine)
    assert hu.dtype == np.int16


def test_a_transform_fault_moves_the_brain_by_a_centimetre_or_more():
    corners = np.array([[x, y, z, 1] for x in (-60, 60) for y in (-100, 60) for z in (-50, 70)]).T
    for seed in range(20):
        moved = (transform_fault(np.random.default_rng(seed)) - np.eye(4)) @ corners
        assert np.linalg.norm(moved[:3], axis=0).max() > 10
