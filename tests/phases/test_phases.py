import copy
from functools import partial

import pytest
import torch

from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.gan import GANPhase

SGD = partial(torch.optim.SGD, lr=0.1)


def tiny(norm="batch", critic="none"):
    torch.manual_seed(0)
    return FAnoGAN(ModelConfig(4, 8, 16, norm, critic, norm, "tanh", 3))


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("phase", "frozen"),
    [(EncoderPhase, ("generator", "critic")), (FinetunePhase, ("critic",)), (GANPhase, ("encoder",))],
)
def test_frozen_networks_keep_every_bit(phase, frozen):
    """Weights and buffers: a BatchNorm left in training mode would drift its running statistics."""
    detector = tiny(critic="batch")
    extra = dict(lambda_gp=10.0, critic_steps=1) if phase is GANPhase else {}
    module = phase(detector, SGD, **extra)
    before = {n: state(getattr(detector, n)) for n in ("generator", "critic", "encoder")}
    module.train()  # what Lightning does after each validation
    x = torch.rand(3, 1, 16, 16, 16) * 2 - 1
    if phase is GANPhase:
        fake = detector.generator(torch.randn(3, 8))
        (detector.critic(x).mean() - detector.critic(fake).mean()).backward()
    else:
        optimizer = module.configure_optimizers()["optimizer"]
        detector.distances(x, detector.reconstruct(x))["total"].mean().backward()
        optimizer.step()
    for name in ("generator", "critic", "encoder"):
        same = all(torch.equal(v, before[name][k]) for k, v in state(getattr(detector, name)).items())
        network = getattr(detector, name)
        if name in frozen:
            assert same
            assert not any(p.requires_grad for p in network.parameters())
            assert not network.training
        elif phase is not GANPhase:
            assert not same


def test_the_score_is_the_loss_of_training():
    detector = tiny("group").eval()
    x = torch.rand(3, 1, 16, 16, 16) * 2 - 1
    scores = detector.examine({"image": x}).scores
    losses = detector.distances(x, detector.reconstruct(x))
    for name in ("image", "feature", "total"):
        torch.testing.assert_close(scores[name], losses[name])
    torch.testing.assert_close(scores["total"], scores["image"] + scores["feature"])
    torch.testing.assert_close(
        scores["total"][1:2], detector.examine({"image": x[1:2]}).scores["total"], rtol=1e-4, atol=1e-6
    )


def test_a_saved_detector_scores_the_same(tmp_path):
    detector = tiny("group").eval()
    x = torch.rand(2, 1, 16, 16, 16)
    detector.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    assert torch.equal(again.examine({"image": x}).scores["total"], detector.examine({"image": x}).scores["total"])


def test_seeds_and_steps_draw_apart():
    """torch takes 32 bits of a seed on the CPU."""
    drawn = set()
    for seed, step in ((0, 0), (0, 38547), (1, 0), (0, 524288), (68, 488), (0, 244)):
        phase = EncoderPhase(tiny(), SGD, seed=seed)
        drawn.add(float(torch.rand((), generator=phase.noise(step, 0))))
    assert len(drawn) == 6


def test_noise_depends_on_step_and_purpose_only():
    module = GANPhase(tiny(), SGD, 10.0, 1, seed=4)
    again = GANPhase(copy.deepcopy(tiny()), SGD, 10.0, 1, seed=4)
    torch.rand(5)
    assert torch.equal(module.latent(3, 7, 0), again.latent(3, 7, 0))
    assert not torch.equal(module.latent(3, 7, 0), module.latent(3, 8, 0))
    assert not torch.equal(module.latent(3, 7, 0), module.latent(3, 7, 1))


class LinearCritic(torch.nn.Module):
    """D(x) = <w, x>, whose penalty and gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(16**3) / 20)

    def forward(self, x):
        return x.flatten(1) @ self.w


@pytest.fixture
def linear_gan(monkeypatch):
    detector = tiny("group")
    detector.critic = LinearCritic()
    module = GANPhase(detector, SGD, lambda_gp=10.0, critic_steps=3)
    logged = {}
    for name in ("toggle_optimizer", "untoggle_optimizer"):
        monkeypatch.setattr(module, name, lambda optimizer: None)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    return module, logged


def test_a_critic_step_minimises_equation_2(linear_gan):
    module, logged = linear_gan
    real = torch.rand(5, 1, 16, 16, 16) * 2 - 1
    fake = module.detector.generator(module.latent(5, 0, 0)).detach()
    w = module.detector.critic.w
    before, norm = w.detach().clone(), w.detach().norm()
    module.critic_step(real, SGD([w]))
    difference = (fake.flatten(1) - real.flatten(1)).mean(0)
    torch.testing.assert_close(logged["gan/critic_loss"], before @ difference + 10 * (norm - 1) ** 2)
    gradient = difference + 10 * 2 * (norm - 1) * before / norm
    torch.testing.assert_close(w.detach(), before - 0.1 * gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("norm", "together"), [("batch", False), ("group", True)])
def test_a_critic_with_batchnorm_sees_real_and_generated_volumes_apart(norm, together):
    """Its statistics are those of each half alone; without BatchNorm one pass is the faster."""
    module = GANPhase(tiny(critic=norm), SGD, lambda_gp=10.0, critic_steps=1)
    critic = module.detector.critic
    real, fake = torch.rand(3, 1, 16, 16, 16), -torch.rand(3, 1, 16, 16, 16)
    alone = critic(real).mean() - critic(fake).mean()
    mixed = critic(torch.cat([real, fake])).chunk(2)
    passes = []
    critic.register_forward_pre_hook(lambda _, x: passes.append(len(x[0])))
    found = module.critic_loss(real, fake, torch.rand(3))["wasserstein"]
    torch.testing.assert_close(found, alone)
    assert ((mixed[0].mean() - mixed[1].mean() - alone).abs() < 1e-5) == together
    assert passes == ([6, 3] if together else [3, 3, 3])


def test_a_generator_step_raises_the_critics_value(linear_gan):
    module, logged = linear_gan
    optimizer = torch.optim.SGD(module.detector.generator.parameters(), lr=1e-3)
    z = module.latent(4, 0, 1)
    before = module.detector.critic(module.detector.generator(z)).mean().detach()
    module.generator_step(torch.zeros(4, 1, 16, 16, 16), optimizer)
    torch.testing.assert_close(logged["gan/generator_loss"], -before)
    assert module.detector.critic(module.detector.generator(z)).mean() > before


def test_the_generator_steps_after_every_third_critic_step(linear_gan, monkeypatch):
    module, _ = linear_gan
    steps = []
    monkeypatch.setattr(module, "optimizers", lambda: (None, None))
    monkeypatch.setattr(module, "lr_schedulers", lambda: None)
    monkeypatch.setattr(module, "critic_step", lambda *_: steps.append("critic"))
    monkeypatch.setattr(module, "generator_step", lambda *_: steps.append("generator"))
    for i in range(7):
        module.training_step({"image": torch.zeros(2, 1, 16, 16, 16)}, i)
    assert steps == (["critic"] * 3 + ["generator"]) * 2 + ["critic"]


def test_generator_keeps_running_statistics_while_it_is_finetuned():
    detector = tiny("batch")
    module = FinetunePhase(detector, SGD)
    module.train()
    assert not detector.generator.training
    assert all(p.requires_grad for p in detector.generator.parameters())
    assert detector.encoder.training
