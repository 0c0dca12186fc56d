"""The phases that build on phase 1: what each of their two steps minimises, and what it leaves alone."""

from functools import partial

import pytest
import torch

from anomaly3d.detectors.alpha_fanogan import AlphaFAnoGAN
from anomaly3d.detectors.anovaegan import AnoVAEGAN
from anomaly3d.detectors.losses import critic_losses
from anomaly3d.phases.alpha_gan import AlphaGANPhase
from anomaly3d.phases.gan import CRITIC, GENERATOR, SAMPLES
from anomaly3d.phases.vaegan import VAEGANPhase
from tests.detectors.test_generative import MODEL, heads

SGD = partial(torch.optim.SGD, lr=1e-4)


def phase(kind, monkeypatch):
    torch.manual_seed(0)
    if kind is AlphaGANPhase:
        made = kind(AlphaFAnoGAN(MODEL), SGD, 10.0, 1, lambda_image=10.0, code_width=6)
    else:
        made = kind(AnoVAEGAN(4, 2, 3, 16), SGD, 10.0, 1, adversarial=0.5)
    monkeypatch.setattr(made, "manual_backward", lambda loss: loss.backward())
    for name in ("toggle_optimizer", "untoggle_optimizer"):
        monkeypatch.setattr(made, name, lambda _: None)
    monkeypatch.setattr(made, "log", lambda *_, **__: None)
    return made


@pytest.mark.parametrize("kind", [AlphaGANPhase, VAEGANPhase])
def test_each_step_lowers_its_loss_and_leaves_the_other_side_alone(kind, monkeypatch):
    module, x = phase(kind, monkeypatch), heads()
    optimizers = [o["optimizer"] for o in module.configure_optimizers()]
    sides = [[p for g in o.param_groups for p in g["params"]] for o in optimizers]
    everything = list(module.parameters())
    assert sorted(map(id, sides[0] + sides[1])) == sorted(map(id, everything))
    detector = module.detector
    judging = [detector.critic, *([module.code_critic] if kind is AlphaGANPhase else [])]
    networks = judging, [detector.encoder, detector.generator]
    steps = (module.critic_step, module.critic_losses), (module.generator_step, module.generator_losses)
    for number, (step, losses) in enumerate(steps):
        name = ("critic_loss", "generator_loss")[number]
        kept, moved = ([vector(n) for n in networks[side]] for side in (1 - number, number))
        before = losses(x)[name].item()
        step(x, optimizers[number])
        assert losses(x)[name].item() < before
        assert all(torch.equal(a, vector(n)) for a, n in zip(kept, networks[1 - number], strict=True))
        assert not any(torch.equal(a, vector(n)) for a, n in zip(moved, networks[number], strict=True))
        for parameter in everything:
            parameter.grad = None


def vector(network):
    """All weights of a network, as they are now."""
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def test_the_losses_of_the_alpha_gan_are_those_of_kwon_et_al(monkeypatch):
    module, x = phase(AlphaGANPhase, monkeypatch), heads()
    detector, D, C = module.detector, module.detector.critic, module.code_critic
    codes, z = detector.encoder(x), module.latent(3, 0, CRITIC)
    again, drawn = detector.generator(codes), detector.generator(z)
    found, epsilon = module.critic_losses(x), module.epsilon(3, 2)
    halves = [critic_losses(D, x, f, e, 10.0) for f, e in ((again, epsilon[:3]), (drawn, epsilon[3:]))]
    of_codes = -C(z).mean() + C(codes).mean() + 10 * critic_losses(C, z, codes, epsilon[:3], 10.0)["penalty"]
    of_volumes = D(again).mean() + D(drawn).mean() - 2 * D(x).mean() + 10 * sum(h["penalty"] for h in halves)
    torch.testing.assert_close(found["critic_loss"], of_volumes / 2 + of_codes)
    drawn = detector.generator(module.latent(3, 0, GENERATOR))
    expected = 10 * (x - again).abs().mean() - D(again).mean() - D(drawn).mean() - C(codes).mean()
    torch.testing.assert_close(module.generator_losses(x)["generator_loss"], expected)


def test_the_vae_hears_the_critic_of_its_reconstructions(monkeypatch):
    module, x = phase(VAEGANPhase, monkeypatch), heads()
    with module.seeded(0, GENERATOR):
        reconstruction, losses = module.detector.autoencode(x)
    expected = losses["loss"] - 0.5 * module.detector.critic(reconstruction).mean()
    torch.testing.assert_close(module.generator_losses(x)["generator_loss"], expected)
    with module.seeded(0, CRITIC):
        fake = module.detector.autoencode(x)[0].detach()
    of_critic = critic_losses(module.detector.critic, x, fake, module.epsilon(3), 10.0)["critic_loss"]
    torch.testing.assert_close(module.critic_losses(x)["critic_loss"], of_critic)


def test_what_is_drawn_depends_on_the_step_alone(monkeypatch):
    module, x = phase(VAEGANPhase, monkeypatch), heads()
    first = module.generator_losses(x)["generator_loss"]
    state = torch.get_rng_state()
    torch.testing.assert_close(module.generator_losses(x)["generator_loss"], first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    module.batches_seen = 1
    assert module.generator_losses(x)["generator_loss"] != first


@pytest.mark.parametrize("kind", [AlphaGANPhase, VAEGANPhase])
def test_what_a_phase_was_made_with_is_in_its_checkpoints(kind, monkeypatch):
    module, own = phase(kind, monkeypatch), {"adversarial": 0.5}
    if kind is AlphaGANPhase:
        own = {"lambda_image": 10.0, "code_width": 6}
    assert dict(module.hparams) == {
        "detector": module.detector.config,
        "lambda_gp": 10.0,
        "critic_steps": 1,
        "penalty": "exact",
        "penalty_every": 4,
        "seed": 0,
        **own,
    }
    again = kind(**module.hparams, optimizer=SGD)
    assert (again.lambda_gp, again.critic_steps) == (10.0, 1)
    assert again.state_dict().keys() == module.state_dict().keys()


def test_the_vae_of_a_gan_shows_its_reconstructions_and_tells_pasted_anomalies_apart(monkeypatch):
    module, x = phase(VAEGANPhase, monkeypatch), heads()
    monkeypatch.setattr(module, "log_mean", lambda name, mean, scans: logged.update({name: (float(mean), scans)}))
    logged: dict[str, tuple[float, int]] = {}
    curves = module.validation_step({"image": x, "pseudo": -x}, 4)
    with module.seeded(4, SAMPLES):
        expected = float(module.detector.loss({"image": x})["loss"])
    assert logged == {"val_loss": (pytest.approx(expected), 3)}
    for kind, volumes in (("healthy", x), ("pseudo", -x)):
        torch.testing.assert_close(curves[kind], module.detector.examine({"image": volumes}).scores["total"].detach())
    (rows,) = module.pictures({"image": x}).values()
    assert list(module.pictures({"image": x})) == ["reconstructions"]
    torch.testing.assert_close(torch.stack([row[1] for row in rows]), module.detector.reconstruct(x)[:, 0])
    assert module.health(None) == {}
