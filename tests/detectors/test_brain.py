import pytest
import torch

from anomaly3d.detectors.brain import brain_of, completed, mean_inside, residual_findings
from anomaly3d.errors import UserError
from tests.detectors.toys import batch


def test_the_mask_counts_and_is_not_guessed():
    scans = batch()
    scans["image"][0, 0, 8, 12, 4] = -1  # air in the brain
    assert brain_of(scans)[0, 0, 8, 12, 4]
    del scans["brain"]
    with pytest.raises(UserError, match="brain masks"):
        brain_of(scans)


def test_the_mean_is_over_each_scans_own_brain():
    values = torch.arange(8.0).view(2, 1, 2, 2, 1)
    brain = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).view_as(values) > 0
    assert mean_inside(values, brain).tolist() == [0.5, 7.0]
    assert mean_inside(values, torch.zeros_like(brain)).tolist() == [0.0, 0.0]


def test_the_residual_is_absolute_and_inside():
    scans = batch(2)
    found = residual_findings(scans, scans["image"] + 0.05)
    assert found.scores["total"].tolist() == pytest.approx([0.05, 0.05])
    assert torch.equal(found.reconstruction == scans["image"], scans["brain"] == 0)


def test_a_reconstruction_stays_within_the_window():
    x, brain = torch.zeros(1, 1, 1, 1, 3), torch.tensor([True, True, False]).view(1, 1, 1, 1, 3)
    assert completed(x, torch.tensor([2.0, -3.0, 5.0]).view_as(x), brain).flatten().tolist() == [1, -1, 0]
