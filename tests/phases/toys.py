"""Networks small enough to work out by hand, and a real trainer to take them through a phase."""

from functools import partial

import lightning as L
import torch
from lightning.pytorch.plugins import Precision
from torch.nn import Module, Parameter
from torch.utils.data import DataLoader

from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig

SHAPE, LATENT, KAPPA, RATE = (1, 2, 3, 4), 3, 0.25, 0.1
MOVED_BY_GAN = (("generator", "w"), ("critic", "a"), ("critic", "b"))
SGD = partial(torch.optim.SGD, lr=RATE)


class LinearGenerator(Module):
    """G(z) = z W."""

    def __init__(self) -> None:
        super().__init__()
        self.w = Parameter(torch.randn(LATENT, 24) / 3)

    def forward(self, z):
        return (z @ self.w).unflatten(1, SHAPE)


class QuadraticCritic(Module):
    """f(x) = a x^2 / 2 at each voxel, D(x) = sum f(x) + <b, x>; so grad D(x) = a x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Parameter(torch.rand(24)), Parameter(torch.randn(24) / 5)

    def features(self, x, halvings=None):
        return self.a * x.flatten(1).square() / 2

    def forward(self, x):
        return self.features(x).sum(1) + x.flatten(1) @ self.b


class LinearEncoder(Module):
    """E(x) = x U."""

    def __init__(self) -> None:
        super().__init__()
        self.u = Parameter(torch.randn(24, LATENT) / 5)

    def forward(self, x):
        return x.flatten(1) @ self.u


class Recording(Precision):
    """Lightning's own way through ``backward``, which divides gradients among processes, and who took it."""

    def __init__(self) -> None:
        super().__init__()
        self.losses = []

    def backward(self, tensor, *rest, **more):
        self.losses.append(float(tensor))
        super().backward(tensor, *rest, **more)


def make_toy():
    """A detector of them."""
    torch.manual_seed(0)
    detector = FAnoGAN(ModelConfig(1, LATENT, 8, "none", "none", "none", "linear"), KAPPA)
    detector.generator, detector.critic, detector.encoder = LinearGenerator(), QuadraticCritic(), LinearEncoder()
    return detector


def volumes(count, seed=1):
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def trainer(*plugins):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=1, plugins=[*plugins], log_every_n_steps=1, **quiet)


def loader(batches):
    """Batches as they are."""
    return DataLoader(list(batches), batch_size=None)


def trained(phase, batches):
    """The losses that went through Lightning's ``backward``, and what was logged last, of one pass over batches."""
    recording = Recording()
    fitting = trainer(recording)
    fitting.fit(phase, loader({"image": x} for x in batches))
    return recording.losses, {name: float(value) for name, value in fitting.callback_metrics.items()}
