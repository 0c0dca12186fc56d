import pytest
import torch
from torch import nn
from torch.distributions import Normal

from anomaly3d.detectors.aeu import AEU
from anomaly3d.detectors.likelihood import deviance
from tests.detectors.toys import Answers, batch

FLOOR = 0.1
BRAIN = torch.ones(500, 1, 2, 1, 1, dtype=torch.uint8)


class Constant(nn.Module):
    """One mean and one raw log variance for each voxel, the same for all scans."""

    def __init__(self):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(1, 2, 2, 1, 1))

    def forward(self, x):
        return self.values.expand(len(x), -1, -1, -1, -1)


def test_the_loss_is_least_at_the_mean_and_variance_of_each_voxel():
    generator = torch.Generator().manual_seed(0)
    mean, spread = (torch.tensor(v).view(1, 1, 2, 1, 1) for v in ([-0.2, 0.4], [0.15, 0.6]))
    x = mean + spread * torch.randn(500, 1, 2, 1, 1, generator=generator)
    detector = AEU(8, 4, 16, FLOOR)
    detector.net = Constant()
    optimizer = torch.optim.LBFGS(detector.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = detector.loss({"image": x, "brain": BRAIN, "scan_id": []})["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    found, log_variance = detector.predict(x[:1])
    torch.testing.assert_close(found, x.mean(0, keepdim=True), atol=1e-3, rtol=0)
    torch.testing.assert_close(log_variance.exp(), x.var(0, correction=0, keepdim=True), atol=1e-3, rtol=1e-2)


def test_deviance_is_the_likelihood_of_a_gaussian():
    x, mean, log_variance = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    expected = -2 * Normal(mean, (log_variance / 2).exp()).log_prob(x)
    torch.testing.assert_close(deviance(x, mean, log_variance) + torch.log(torch.tensor(2 * torch.pi)), expected)


def test_score_and_map_are_deviations_in_spreads():
    """Mean 0.1 and raw variance 0.03: with the floor's 0.01 a spread of 0.2."""
    detector, scans = AEU(8, 4, 16, FLOOR), batch()
    raw = torch.tensor(0.03).log()
    detector.net = Answers(lambda x: torch.cat([torch.full_like(x, 0.1), torch.full_like(x, float(raw))], 1))
    found = detector.examine(scans)
    brain = scans["brain"] > 0
    z = (scans["image"] - 0.1) / 0.2
    torch.testing.assert_close(found.maps["deviation"][brain], z[brain])
    expected = [float(v[b].square().mean()) for v, b in zip(z, brain, strict=True)]
    assert found.scores["total"].tolist() == pytest.approx(expected)


def test_no_spread_is_below_the_floor():
    detector, scans = AEU(8, 4, 16, FLOOR), batch()
    detector.net = Answers(lambda x: torch.cat([x - 0.05, torch.full_like(x, -50)], 1))
    assert detector.examine(scans).scores["total"].tolist() == pytest.approx([0.25] * 3, rel=1e-4)
