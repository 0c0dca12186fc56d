"""What every generative detector owes: its findings belong to the scan, survive a file, and get better by training."""

import pytest
import torch

from anomaly3d.detectors.anogan import AnoGAN
from anomaly3d.detectors.anovaegan import AnoVAEGAN
from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.diffusion import Diffusion
from anomaly3d.detectors.gmvae import GMVAE
from anomaly3d.phases.base import freeze

MODEL = dict(channels=4, latent=8, resolution=16, generator_norm="group", critic_norm="none", encoder_norm="group")
MODEL |= {"encoder_output": "tanh"}
MADE = {
    "anogan": lambda: AnoGAN(MODEL, steps=5),
    "anogan-encoder": lambda: AnoGAN(MODEL, steps=5, start="encoder", smooth=True),
    "gmvae": lambda: GMVAE(4, 2, 3, 2, 3, steps=5),
    "anovaegan": lambda: AnoVAEGAN(4, 2, 3, 16),
    "diffusion": lambda: Diffusion([8, 8], times=20, start=1.0, steps=3),
    "diffusion-coarse": lambda: Diffusion([8, 8], times=20, start=1.0, steps=3, coarse=3),
    "diffusion-volume": lambda: Diffusion([8, 8], times=20, start=1.0, steps=3, predicts="volume"),
}
TRAINED_BY_LOSS = ("gmvae", "anovaegan", "diffusion", "diffusion-coarse", "diffusion-volume")


def made(name):
    torch.manual_seed(0)
    detector = MADE[name]().eval()
    for parameter in detector.parameters():
        if not parameter.any():  # a layer that begins with zeros would hide what is before it
            torch.nn.init.normal_(parameter, std=0.05)
    return detector


def heads(count=3):
    """Blobs of other brightness in an empty volume of 16^3."""
    axis = torch.linspace(-1, 1, 16)
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    level = torch.linspace(-0.2, 0.6, count).view(-1, 1, 1, 1, 1)
    return torch.where(radius < 0.8, level + 0.1 * radius, torch.tensor(-1.0))


def examined(detector, x):
    """As inference calls it."""
    with torch.inference_mode(not detector.needs_gradients), torch.no_grad():
        return detector.examine({"image": x})


@pytest.mark.parametrize("name", MADE)
def test_findings_belong_to_the_scan_alone(name):
    detector, x = made(name), heads()
    freeze(detector)
    together = examined(detector, x)
    torch.rand(3)
    for order in ([1], [2, 0, 1]):
        found = examined(detector, x[order])
        torch.testing.assert_close(found.reconstruction, together.reconstruction[order], rtol=1e-4, atol=1e-4)
        for score, values in found.scores.items():
            torch.testing.assert_close(values, together.scores[score][order], rtol=1e-4, atol=1e-5)
    assert together.reconstruction.shape == x.shape
    assert together.reconstruction.abs().max() <= 1
    assert not together.scores["total"].requires_grad
    assert together.scores["total"].unique().numel() == 3


@pytest.mark.parametrize("name", MADE)
def test_a_saved_detector_finds_the_same(tmp_path, name):
    detector, x = made(name), heads()
    detector.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    assert again.config == detector.config
    first, second = examined(detector, x), examined(again, x)
    assert torch.equal(first.reconstruction, second.reconstruction)
    assert all(torch.equal(first.scores[s], second.scores[s]) for s in first.scores)


@pytest.mark.parametrize("name", TRAINED_BY_LOSS)
def test_a_few_steps_lower_the_loss(name):
    torch.manual_seed(0)
    detector, batch = MADE[name](), {"image": heads(4)}
    optimizer = torch.optim.Adam(detector.parameters(), 5e-3)

    def loss():
        torch.manual_seed(1)
        with torch.no_grad():
            return float(detector.loss(batch)["loss"])

    before = loss()
    for step in range(40):
        torch.manual_seed(step)
        optimizer.zero_grad()
        detector.loss(batch)["loss"].backward()
        optimizer.step()
    assert loss() < 0.8 * before
