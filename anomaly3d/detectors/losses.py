"""The losses of eqs. 2 and 4-6, each one number a volume, so that the training loss and the score are one thing."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from anomaly3d.networks.batch_norm import mixes_volumes

ASIDE = 0.03  # standard deviation, in the volumes' units, of what two values of the critic are taken apart by


def interpolate(real: Tensor, fake: Tensor, epsilon: Tensor) -> Tensor:
    """x^ of eq. 2: ``epsilon * real + (1 - epsilon) * fake`` with one epsilon a volume.

    Args:
        real, fake: ``(B, 1, D, H, W)``.
        epsilon: ``(B,)`` in [0, 1].
    """
    epsilon = epsilon.view(-1, *(1,) * (real.ndim - 1))
    return epsilon * real + (1 - epsilon) * fake


def gradient_norm(critic: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """||grad D(x)||_2 over all voxels of each volume: ``(B, 1, D, H, W)`` -> ``(B,)``, differentiable again.

    The norm is taken in float32: its square overflows nothing but loses digits in bfloat16.
    """
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
    return gradient.float().flatten(1).norm(dim=1)


def gradient_penalty(norm: Tensor) -> Tensor:
    """The third term of eq. 2 before lambda: mean of ``(||grad|| - 1)^2`` over the batch."""
    return (norm - 1).square().mean()


def slope(critic: Callable[[Tensor], Tensor], x: Tensor, noise: Tensor) -> Tensor:
    """|D(x + s n) - D(x - s n)| / 2s, ``(B, ...)`` -> ``(B,)``: the critic's slope along n, without a derivative.

    For n ~ N(0, I) it is |g| of g ~ N(0, ||grad D(x)||^2), as far as D is straight. In float32: what is told apart is
    some thousandths of D.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, step = x.detach().float(), ASIDE * noise
        above, below = critic(torch.cat([x + step, x - step])).chunk(2)
    return (above - below).abs() / (2 * ASIDE)


def approximate_penalty(slopes: Tensor) -> Tensor:
    """What ``gradient_penalty`` is on average, from ``slope (B,)``: mean of ``(|g| - sqrt(pi/2))^2`` + 1 - pi/2.

    E|g| = sqrt(2/pi) ||grad|| and E g^2 = ||grad||^2, so its expectation is ``(||grad|| - 1)^2``.
    """
    return (slopes - math.sqrt(math.pi / 2)).square().mean() + 1 - math.pi / 2


def twice(person: tuple[Tensor, ...]) -> list[Tensor]:
    """``(B, 4)`` -> ``(2B, 4)``, where there is one."""
    return [torch.cat([p, p]) for p in person]


def critic_losses(
    critic: nn.Module,
    real: Tensor,
    fake: Tensor,
    epsilon: Tensor,
    lambda_gp: float,
    *person: Tensor,
    noise: Tensor | None = None,
) -> dict[str, Tensor]:
    """Eq. 2 as ``critic_loss``, and its parts.

    Real and generated samples pass the critic together, which is faster, unless its BatchNorm would then see both.

    Args:
        critic: ``(B, ...)`` and who is shown -> ``(B,)``.
        real, fake: ``(B, ...)``, volumes or codes.
        epsilon: ``(B,)`` in [0, 1].
        lambda_gp: 0 leaves the penalty out.
        person: ``(B, 4)``, who both show, where the critic is told.
        noise: ``(B, ...)`` of N(0, 1), along which the penalty is approximated; None: exact.
    """
    if mixes_volumes(critic):
        of_real, of_fake = critic(real, *person).float(), critic(fake, *person).float()
    else:
        of_real, of_fake = critic(torch.cat([real, fake]), *twice(person)).float().chunk(2)
    wasserstein = of_real.mean() - of_fake.mean()
    losses = {"critic_loss": -wasserstein, "wasserstein": wasserstein}
    if lambda_gp == 0:
        return losses
    between = interpolate(real, fake, epsilon)
    if noise is None:
        norm = gradient_norm(lambda x: critic(x, *person), between)
        penalty = gradient_penalty(norm)
    else:
        slopes = slope(lambda x: critic(x, *twice(person)), between, noise)
        norm, penalty = slopes * math.sqrt(math.pi / 2), approximate_penalty(slopes)
    return {
        **losses,
        "critic_loss": lambda_gp * penalty - wasserstein,
        "penalty": penalty,
        "gradient_norm": norm.mean(),
    }


def image_distance(x: Tensor, reconstruction: Tensor) -> Tensor:
    """L_img, eq. 4: mean squared difference over the voxels of each volume, ``(B, 1, D, H, W)`` -> ``(B,)``."""
    return (x.float() - reconstruction.float()).square().flatten(1).mean(1)


def feature_distance(features: Tensor, reconstruction_features: Tensor) -> Tensor:
    """L_feat, eq. 5: mean squared difference over the critic's features, ``(B, C, d, h, w)`` -> ``(B,)``."""
    return image_distance(features, reconstruction_features)


def absolute_distance(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute difference over all but the first axis, ``(B, ...)`` -> ``(B,)``."""
    return (x.float() - reconstruction.float()).abs().flatten(1).mean(1)
