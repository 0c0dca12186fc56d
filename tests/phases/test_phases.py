import copy
from functools import partial

import pytest
import torch

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
        optimizer = module.configure_optimizers()
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
    scores = detector.score(x)
    losses = detector.distances(x, detector.reconstruct(x))
    for name in ("image", "feature", "total"):
        torch.testing.assert_close(scores[name], losses[name])
    torch.testing.assert_close(scores["total"], scores["image"] + scores["feature"])
    torch.testing.assert_close(scores["total"][1:2], detector.score(x[1:2])["total"], rtol=1e-4, atol=1e-6)


def test_a_saved_detector_scores_the_same(tmp_path):
    detector = tiny("group").eval()
    x = torch.rand(2, 1, 16, 16, 16)
    detector.save(tmp_path / "model.pt")
    again = FAnoGAN.load(tmp_path / "model.pt").eval()
    assert torch.equal(again.score(x)["total"], detector.score(x)["total"])


def test_noise_depends_on_step_and_purpose_only():
    module = GANPhase(tiny(), SGD, 10.0, 1, seed=4)
    again = GANPhase(copy.deepcopy(tiny()), SGD, 10.0, 1, seed=4)
    torch.rand(5)
    assert torch.equal(module.latent(3, 7, 0), again.latent(3, 7, 0))
    assert not torch.equal(module.latent(3, 7, 0), module.latent(3, 8, 0))
    assert not torch.equal(module.latent(3, 7, 0), module.latent(3, 7, 1))
