"""The bound against what is known in closed form: divergences of Gaussians, and a model whose evidence is known."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from anomaly3d.detectors.vae import VAE
from tests.detectors.toys import batch

SPREAD = 0.3
DRAWS = 20_000


class Linear(nn.Module):
    """decode(z) = W z with orthogonal columns, so the true posterior is diagonal; ``off`` moves its mean."""

    def __init__(self, columns, off):
        super().__init__()
        self.columns, self.off = columns, off

    def encode(self, x):
        variance = 1 / (1 + self.columns.square().sum(0) / SPREAD**2)
        mean = x.flatten(1) @ self.columns * variance / SPREAD**2 + self.off
        return torch.cat([mean, variance.log().expand_as(mean)], 1)

    def decode(self, z):
        return (z @ self.columns.T).view(len(z), 1, 3, 2, 1)


def columns():
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(6, 2, generator=generator))[0] * torch.tensor([0.8, 0.3])


def bound(off):
    """A scan's evidence and its bound in nats, with their standard error."""
    torch.manual_seed(1)
    detector = VAE(8, 2, 16, 1.0, SPREAD)
    w = columns()
    detector.net = Linear(w, torch.tensor(off))
    x = torch.linspace(-0.5, 0.7, 6).view(1, 1, 3, 2, 1)
    evidence = MultivariateNormal(torch.zeros(6), w @ w.T + SPREAD**2 * torch.eye(6)).log_prob(x.flatten())
    draws = {"image": x.expand(DRAWS, -1, -1, -1, -1), "brain": torch.ones(DRAWS, 1, 3, 2, 1, dtype=torch.uint8)}
    return float(evidence), -6 * float(detector.loss({**draws, "scan_id": []})["loss"])


def test_it_is_the_evidence_under_the_true_posterior():
    evidence, found = bound([0.0, 0.0])
    assert found == pytest.approx(evidence, abs=0.05)


def test_it_is_a_bound_under_another_and_the_gap_is_their_divergence():
    off = torch.tensor([0.5, -0.4])
    evidence, found = bound(off.tolist())
    precision = 1 + columns().square().sum(0) / SPREAD**2
    gap = float((off.square() * precision).sum() / 2)
    assert gap > 0.5
    assert found == pytest.approx(evidence - gap, abs=0.1)


@torch.no_grad()
@pytest.mark.parametrize("spatial", [True, False])
def test_the_score_is_the_sum_of_its_parts_at_the_posterior_mean(spatial):
    torch.manual_seed(0)
    detector = VAE(8, 4, 16, 2.5, SPREAD, spatial).eval()
    scans = batch(shape=(16, 16, 16))
    x, brain = scans["image"], scans["brain"][0] > 0
    found = detector.examine(scans)
    mean, log_variance = detector.net.encode(x).chunk(2, 1)
    decoded = detector.net.decode(mean)
    surprise = -Normal(decoded[:, brain], SPREAD).log_prob(x[:, brain]).mean(1)
    torch.testing.assert_close(found.scores["reconstruction"], surprise)
    kl = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(found.scores["kl"], kl / brain.sum())
    torch.testing.assert_close(found.scores["total"], found.scores["reconstruction"] + 2.5 * found.scores["kl"])
    assert detector.parts == ("reconstruction", "kl")
