import pytest
import torch
from torch.distributions import Normal, kl_divergence

from anomaly3d.detectors.anovaegan import AnoVAEGAN
from anomaly3d.errors import UserError
from tests.detectors.test_generative import heads


def test_the_loss_is_that_of_a_vae():
    torch.manual_seed(0)
    detector, x = AnoVAEGAN(4, 2, 3, 16, beta=2.0), heads()
    torch.manual_seed(1)
    reconstruction, found = detector.autoencode(x)
    mean, logvar = detector.encoder(x).chunk(2, 1)
    torch.manual_seed(1)
    z = mean + (logvar / 2).exp() * torch.randn_like(mean)
    torch.testing.assert_close(reconstruction, detector.generator(z))
    kl = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(0.0, 1.0)).sum() / x.numel()
    image = (x - reconstruction).abs().mean()
    torch.testing.assert_close(found["loss"], image + 2 * kl)
    torch.testing.assert_close(found["kl"], kl)


def test_the_score_is_the_distance_to_the_reconstruction_from_the_mean():
    torch.manual_seed(0)
    detector, x = AnoVAEGAN(4, 2, 3, 16).eval(), heads()
    found = detector.examine({"image": x})
    expected = detector.generator(detector.encoder(x)[:, :3])
    torch.testing.assert_close(found.reconstruction, expected)
    torch.testing.assert_close(found.scores["total"], (x - expected).abs().flatten(1).mean(1))


def test_a_resolution_that_the_critic_cannot_have_is_refused():
    with pytest.raises(UserError, match="resolution must be"):
        AnoVAEGAN(resolution=40)
