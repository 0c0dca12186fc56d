"""The terms of the ELBO against torch's distributions, and restorations that end where they are known to."""

import math

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, kl_divergence

from anomaly3d.detectors.gmvae import GMVAE, total_variation
from tests.detectors.test_generative import heads

PLACES = (2, 2, 1, 3)


def tiny(components=3, **more):
    torch.manual_seed(0)
    detector = GMVAE(4, 2, 2, 1, components, **more)
    for layer in (detector.prior[0], detector.prior[2]):
        torch.nn.init.normal_(layer.weight, std=0.7)
        torch.nn.init.normal_(layer.bias, std=0.7)
    return detector.eval()


def posterior(channels):
    """Mean and log variance at each place."""
    return torch.randn(PLACES[0], channels, *PLACES[1:]), torch.randn(PLACES[0], channels, *PLACES[1:])


def normal(mean, logvar):
    """With channels last, as one variable."""
    return Independent(Normal(mean.movedim(1, -1), (logvar / 2).exp().movedim(1, -1)), 1)


def test_divergences_are_those_of_torch():
    detector = tiny()
    of_z, of_w, z, w = posterior(2), posterior(1), posterior(2)[0], posterior(1)[0]
    found = detector.divergences(z, w, of_z, of_w)
    means, logvars = detector.prior(w).unflatten(1, (2, 3, 2)).unbind(1)
    components = [normal(means[:, k], logvars[:, k]) for k in range(3)]
    evidence = torch.stack([c.log_prob(z.movedim(1, -1)) for c in components], -1)
    share = Categorical(logits=evidence)
    of_components = torch.stack([kl_divergence(normal(*of_z), c) for c in components], -1)
    torch.testing.assert_close(found["kl_z"], (share.probs * of_components).sum(-1).flatten(1).sum(1))
    torch.testing.assert_close(found["kl_c"], (math.log(3) - share.entropy()).flatten(1).sum(1))
    standard = Normal(0.0, 1.0)
    torch.testing.assert_close(
        found["kl_w"], kl_divergence(Normal(of_w[0], (of_w[1] / 2).exp()), standard).flatten(1).sum(1)
    )


def test_together_they_bound_the_divergence_from_the_mixture():
    """E_q(z) [log q(z) - log p(z | w)] <= E_q(z) [sum over c of p(c | z, w) (log q - log p(z | w, c))] + KL of c."""
    detector = tiny()
    of_z, of_w, w = posterior(2), posterior(1), posterior(1)[0]
    means, logvars = detector.prior(w).unflatten(1, (2, 3, 2)).unbind(1)
    mixture = MixtureSameFamily(
        Categorical(torch.ones(2, 2, 1, 3, 3)),
        Independent(Normal(means.permute(0, 3, 4, 5, 1, 2), (logvars / 2).exp().permute(0, 3, 4, 5, 1, 2)), 1),
    )
    draws = normal(*of_z).sample((4000,))
    true = (normal(*of_z).log_prob(draws) - mixture.log_prob(draws)).mean(0).flatten(1).sum(1)
    drawn = [detector.divergences(z.movedim(-1, 1), w, of_z, of_w) for z in draws[:400]]
    mean = torch.stack([d["kl_z"] + d["kl_c"] for d in drawn]).mean(0)
    assert (mean > 0.98 * true).all()


def test_with_one_component_it_is_a_vae():
    detector, x = tiny(components=1), heads(2)
    torch.nn.init.zeros_(detector.prior[2].weight)
    torch.nn.init.zeros_(detector.prior[2].bias)  # p(z | w) = N(0, I)
    found = detector.elbo(x, draw=False)
    mean, logvar, mean_w, logvar_w = detector.encoder(x).split(detector.sizes, 1)
    error = (x - detector.decoder(mean)).square().flatten(1).sum(1) / 2
    standard = Normal(0.0, 1.0)
    kl, kl_w = (
        kl_divergence(Normal(m, (v / 2).exp()), standard).flatten(1).sum(1)
        for m, v in ((mean, logvar), (mean_w, logvar_w))
    )
    torch.testing.assert_close(found["kl_c"], torch.zeros(2))
    torch.testing.assert_close(found["surprise"], error + 0.01 * (kl + kl_w), rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_surprise_of_a_draw_for_each_voxel():
    detector, x = tiny(), heads(2)
    torch.manual_seed(3)
    found = detector.loss({"image": x})
    torch.manual_seed(3)
    torch.testing.assert_close(found["loss"], detector.elbo(x, draw=True)["surprise"].mean() / 16**3)
    assert found["loss"] != detector.elbo(x, draw=False)["surprise"].mean() / 16**3


def test_total_variation_counts_the_faces_of_a_box():
    x = torch.zeros(1, 1, 7, 6, 5)
    x[..., 1:3, 2:5, 1:2] = 0.5
    assert float(total_variation(x)) == 0.5 * 2 * (2 * 3 + 3 * 1 + 2 * 1)


class Known(GMVAE):
    """A prior that finds the volume 0.1 most likely."""

    def elbo(self, x, draw):
        return {"surprise": (x - 0.1).square().flatten(1).sum(1) / 2}


def test_without_variation_it_restores_what_is_most_likely():
    x = torch.rand(2, 1, 5, 4, 3) - 0.5
    restored = Known(4, 2, tv=0.0, steps=3, rate=0.1).restore(x)
    torch.testing.assert_close(restored, 0.1 + (x - 0.1) * 0.9**3)
    torch.testing.assert_close(Known(4, 2, tv=0.0, steps=100).restore(x), torch.full_like(x, 0.1), atol=1e-4, rtol=0)


def test_variation_keeps_what_total_variation_denoising_keeps():
    """A step of height h along one axis, over n1 and n2 voxels: the change is lowered by lambda / n1, raised by
    lambda / n2, the known solution of total variation denoising."""
    x = torch.full((1, 1, 8, 3, 2), 0.1)
    x[:, :, :2] += 0.4
    restored = Known(4, 2, tv=0.1, steps=700, rate=0.01).restore(x)
    expected = torch.full_like(x, 0.1 - 0.1 / 6)
    expected[:, :, :2] = 0.1 + 0.1 / 2
    torch.testing.assert_close(restored, expected, atol=2e-3, rtol=0)


def test_a_restoration_steps_along_the_whole_gradient():
    """Also through the encoder."""
    detector, x = tiny(steps=1, rate=0.5), heads(2)
    y = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.elbo(y, draw=False)["surprise"].sum(), y)
    torch.testing.assert_close(detector.restore(x), (x - 0.5 * gradient).clamp(-1, 1))
    frozen_code = x - detector.decoder(detector.encoder(x)[:, :2])
    assert (gradient - frozen_code).abs().max() > 1e-3


def test_validation_does_not_restore(monkeypatch):
    detector, x = tiny(), heads(2)
    monkeypatch.setattr(detector, "restore", None)
    torch.testing.assert_close(detector.quick_score({"image": x}), detector.elbo(x, draw=False)["surprise"])
