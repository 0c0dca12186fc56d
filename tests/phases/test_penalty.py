"""The ways to take phase 1's gradient penalty, by a real trainer against the equations written out."""

import math
from functools import partial

import pytest
import torch

from anomaly3d.errors import UserError
from anomaly3d.phases.gan import CRITIC, EPSILON, GANPhase
from tests.phases.toys import LATENT, MOVED_BY_GAN, SGD, trained, volumes


@pytest.mark.parametrize("way", ["lazy", "approximate"])
def test_a_penalty_is_taken_in_every_third_step_or_from_two_values_of_the_critic(toy, way):
    """The critic's first four losses, which no generator step comes between."""
    a, b, w = (getattr(toy.get_submodule(n), k).detach().clone() for n, k in (*MOVED_BY_GAN[1:], MOVED_BY_GAN[0]))
    phase = GANPhase(toy, partial(torch.optim.SGD, lr=0.0), 10.0, 9, seed=7, penalty=way, penalty_every=3)
    batches = [volumes(n, n) for n in (4, 3, 2, 5)]
    losses, _ = trained(phase, batches)
    for step, (loss, x) in enumerate(zip(losses, (x.flatten(1) for x in batches), strict=True)):
        fake = torch.randn(len(x), LATENT, generator=phase.noise(step, CRITIC)) @ w
        epsilon = torch.rand(len(x), generator=phase.noise(step, EPSILON))[:, None]
        gradient = a * (epsilon * x + (1 - epsilon) * fake) + b
        wasserstein = (x.square() @ a / 2 + x @ b).mean() - (fake.square() @ a / 2 + fake @ b).mean()
        if way == "lazy":
            penalty = 3 * (gradient.norm(dim=1) - 1).square().mean() if step in (0, 3) else torch.tensor(0.0)
        else:
            phase.batches_seen = step
            along = (gradient * phase.direction(x)).sum(1).abs()  # of a quadratic critic it is exact
            penalty = (along - math.sqrt(math.pi / 2)).square().mean() + 1 - math.pi / 2
        assert loss == pytest.approx(float(10 * penalty - wasserstein), rel=1e-3), step


def test_an_approximate_penalty_of_reconstructions_and_samples_is_along_one_direction_a_volume(toy):
    phase = GANPhase(toy, SGD, 10.0, 1, penalty="approximate")
    twice = partial(phase.critic_loss, volumes(2).repeat(2, 1, 1, 1, 1), volumes(2, 3).repeat(2, 1, 1, 1, 1))
    once = phase.critic_loss(volumes(2), volumes(2, 3), torch.tensor([0.2, 0.7]))["penalty"]
    torch.testing.assert_close(twice(torch.tensor([0.2, 0.7] * 2), each=2)["penalty"], once)
    assert float(twice(torch.tensor([0.2, 0.7] * 2), each=1)["penalty"]) != pytest.approx(float(once), rel=1e-3)


@pytest.mark.parametrize("wrong", [{"penalty": "exakt"}, {"penalty": "lazy", "penalty_every": 0}])
def test_a_penalty_that_there_is_not_is_refused(toy, wrong):
    with pytest.raises(UserError, match=r"phase.module.penalty must be one of exact, lazy, approximate"):
        GANPhase(toy, SGD, 10.0, 1, **wrong)
