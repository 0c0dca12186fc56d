"""Normal distributions with a mean and a log variance for each number, as latent spaces have them."""

import torch
from torch import Tensor

from anomaly3d.data.sampler import dealt


def drawn(mean: Tensor, logvar: Tensor) -> Tensor:
    """A draw from N(mean, e^logvar) for each volume of a step, ``(B, ...)``, differentiable in both."""
    noise = dealt(lambda volumes: torch.randn(volumes, *mean.shape[1:]), len(mean))
    return mean + (logvar / 2).exp() * noise.to(mean.device)


def divergence(mean: Tensor, logvar: Tensor, to_mean: Tensor | float = 0.0, to_logvar: Tensor | float = 0.0) -> Tensor:
    """KL(N(mean, e^logvar) || N(to_mean, e^to_logvar)) of each number, in nats; from N(0, 1) if no other is given."""
    to_logvar = torch.as_tensor(to_logvar, dtype=mean.dtype, device=mean.device)
    ratio = (logvar.exp() + (mean - to_mean).square()) * (-to_logvar).exp()
    return (ratio + to_logvar - logvar - 1) / 2
