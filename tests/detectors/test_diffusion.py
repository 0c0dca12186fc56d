import pytest
import torch

from anomaly3d.detectors.diffusion import Diffusion
from anomaly3d.detectors.noise import noise_of
from anomaly3d.errors import UserError
from tests.detectors.test_generative import heads


def tiny(**more):
    torch.manual_seed(0)
    return Diffusion([8, 8], **more).eval()


class Oracle(torch.nn.Module):
    """Knows the volumes, and so the noise in what it is shown."""

    def __init__(self, detector, x):
        super().__init__()
        self.signal, self.x = detector.signal, x

    def forward(self, noised, t):
        kept = self.signal[t].view(-1, 1, 1, 1, 1)
        return (noised - kept.sqrt() * self.x) / (1 - kept).sqrt()


@pytest.mark.parametrize(("start", "steps"), [(0.25, 10), (0.25, 7), (1.0, 1), (0.037, 37)])
def test_who_knows_the_noise_gets_the_scan_back(start, steps):
    detector, x = tiny(start=start, steps=steps), heads()
    seen = []
    detector.network = Oracle(detector, x)
    detector.network.register_forward_hook(lambda _, given, noise: seen.append((given[1][0], noise)))
    torch.testing.assert_close(detector.reconstruct(x), x, rtol=0, atol=2e-3)
    assert int(seen[0][0]) == round(1000 * start)
    assert len(seen) == steps
    for _, noise in seen[:-1]:  # a deterministic DDIM keeps the noise it began with
        torch.testing.assert_close(noise, noise_of(x, *x.shape[1:]), rtol=0, atol=0.05)


def test_the_schedule_is_that_of_ho_et_al():
    signal = tiny().signal
    assert len(signal) == 1001
    assert signal[0] == 1
    assert float(signal[1]) == pytest.approx(1 - 1e-4)
    assert float(signal[1000]) == pytest.approx(4.036e-5, rel=1e-3)
    assert (signal.diff() < 0).all()


def test_noising_keeps_unit_variance():
    detector, noise = tiny(), torch.randn(2, 1, 16, 16, 16)
    x = torch.randn(2, 1, 16, 16, 16)
    noised = detector.noised(x, noise, torch.tensor([0, 500]))
    torch.testing.assert_close(noised[0], x[0])
    assert float(noised[1].var()) == pytest.approx(1, abs=0.05)


def test_the_loss_is_that_of_the_noise(monkeypatch):
    """A network that sees no noise is wrong by its variance; one that sees all of it is right."""
    detector, x = tiny(times=100, start=0.3), heads()
    with torch.no_grad():
        assert float(detector.loss({"image": x})["loss"]) == pytest.approx(1, abs=0.05)
    times = []
    detector.network = Oracle(detector, x)
    detector.network.register_forward_hook(lambda _, given, noise: times.append(given[1]))
    for _ in range(60):
        assert float(detector.loss({"image": x})["loss"]) < 1e-4
    drawn = torch.cat(times)
    assert (drawn.min(), drawn.max()) == (1, 30)


def test_coarse_noise_has_grains_and_unit_variance():
    detector = tiny(coarse=3)
    x = torch.zeros(2, 1, 16, 10, 14)
    assert detector.grains(x) == (1, 6, 4, 5)
    noise = detector.grown(noise_of(x + torch.rand_like(x), *detector.grains(x)), x)
    torch.testing.assert_close(noise.flatten(1).std(1), torch.ones(2))
    assert noise.diff(dim=2).square().mean() < 0.5 * torch.randn_like(noise).diff(dim=2).square().mean()
    white = torch.randn(2, 1, 16, 10, 14)
    assert torch.equal(tiny().grown(white, x), white)


def test_a_network_may_predict_the_volume_in_place_of_its_noise():
    """The one follows from the other: what knows the volume walks the same way as what knows the noise."""
    x = heads()
    by_noise, by_volume = tiny(steps=4), tiny(steps=4, predicts="volume")
    with torch.no_grad():
        begun = float(by_volume.loss({"image": x})["loss"])
    assert begun == pytest.approx(float(x.square().mean()))  # it begins with zeros
    shown = {"noise": [], "volume": []}
    wrong = x * 0.9
    by_noise.network, by_volume.network = Oracle(by_noise, wrong), torch.nn.Module()
    by_volume.network.forward = lambda noised, t: wrong
    for detector in (by_noise, by_volume):
        seen = shown[detector.predicts]
        detector.network.register_forward_hook(lambda _, given, __, seen=seen: seen.append(given[0]))
        torch.testing.assert_close(detector.reconstruct(x), wrong, rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.stack(shown["noise"]), torch.stack(shown["volume"]), rtol=0, atol=1e-3)
    assert float(by_volume.loss({"image": x})["loss"]) == pytest.approx(float((0.1 * x).square().mean()))


def test_another_prediction_is_refused():
    with pytest.raises(UserError, match=r"detector\.module\.predicts.*velocity"):
        tiny(predicts="velocity")


@pytest.mark.parametrize("start", [0.001, 1.5])
def test_an_impossible_start_is_refused(start):
    with pytest.raises(UserError, match=r"detector\.module\.start"):
        tiny(start=start)
