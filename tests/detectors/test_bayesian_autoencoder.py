import pytest
import torch
from torch import nn

from anomaly3d.detectors.bayesian_autoencoder import BayesianAutoencoder
from tests.detectors.toys import batch

DROPOUT = 0.3
WEIGHTS = torch.tensor([0.5, -0.2, 0.4, 0.1])


class Linear(nn.Sequential):
    """Copies of a voxel, dropout, and their weighted sum: mean x sum(w), variance x^2 sum(w^2) p / (1 - p)."""

    def __init__(self):
        copies, total = nn.Conv3d(1, 4, 1, bias=False), nn.Conv3d(4, 1, 1, bias=False)
        copies.weight.data.fill_(1)
        total.weight.data = WEIGHTS.view(1, 4, 1, 1, 1)
        super().__init__(copies, nn.Dropout(DROPOUT), total)


def detector(samples=4000, noise=0.05):
    made = BayesianAutoencoder(8, 4, 16, DROPOUT, samples, noise)
    made.net = Linear()
    return made.eval()


@torch.no_grad()
def test_mean_and_spread_of_the_passes_are_those_of_dropout():
    x = torch.tensor([0.9, 0.5, -0.3, 0.1]).view(1, 4, 1, 1)
    passes = detector(40_000).passes(x)
    torch.testing.assert_close(passes.mean(0), x * WEIGHTS.sum(), atol=0.006, rtol=0)
    variance = x.square() * WEIGHTS.square().sum() * DROPOUT / (1 - DROPOUT)
    torch.testing.assert_close(passes.var(0), variance, rtol=0.05, atol=0)


@torch.no_grad()
def test_the_deviation_is_the_residual_in_units_of_the_predictive_spread():
    scans = batch(1, shape=(6, 5, 4))
    x, brain = scans["image"], scans["brain"] > 0
    found = detector().examine(scans)
    residual = x * (1 - WEIGHTS.sum())
    spread = (x.square() * WEIGHTS.square().sum() * DROPOUT / (1 - DROPOUT) + 0.05**2).sqrt()
    torch.testing.assert_close(found.maps["deviation"][brain], (residual / spread)[brain], atol=0.08, rtol=0.08)
    assert float(found.scores["total"]) == pytest.approx(float(residual[brain].abs().mean()), rel=0.05)


def test_dropout_stays_on_in_evaluation_and_nothing_else_does():
    made = BayesianAutoencoder(8, 4, 16, DROPOUT, 3, 0.05).eval()
    on = {type(layer) for layer in made.modules() if layer.training}
    assert on == {nn.Dropout}
    assert not torch.equal(*made.passes(batch(1)["image"][0])[:2])


@torch.no_grad()
def test_what_is_drawn_elsewhere_goes_on_undisturbed():
    made = detector(3)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made.examine(batch())
    assert torch.equal(torch.rand(1), expected)
