"""The algorithm of the paper written straight down: what the yardstick holds the product against.

Float32, contiguous tensors, nearest upsampling and then a 3-wide convolution, a pass of the critic for each of its
arguments, torch's default Adam. The weights are the product's own, so that both compute the same.
"""

import copy

import torch
from torch import Tensor, nn

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.networks.layers import DownsampleConv, LeakyReLU, UpsampleConv


def plain_copy(detector: FAnoGAN) -> FAnoGAN:
    """The same networks and weights, float32 and contiguous, with the upsampling of the paper."""
    detector = copy.deepcopy(detector).float().to(memory_format=torch.contiguous_format)
    ours = DownsampleConv | UpsampleConv | LeakyReLU
    for module in [m for m in detector.modules() if not isinstance(m, ours)]:
        for name, child in list(module.named_children()):
            if isinstance(child, ours):
                setattr(module, name, plain_layer(child))
    return detector


def plain_layer(layer: DownsampleConv | UpsampleConv | LeakyReLU) -> nn.Module:
    """What the layer computes, by torch's own layers on the same weights."""
    if isinstance(layer, LeakyReLU):
        return nn.LeakyReLU(layer.slope)
    wide, narrow = layer.weight.shape[1], layer.weight.shape[0]
    if isinstance(layer, DownsampleConv):
        convolution = nn.Conv3d(wide, narrow, 4, stride=2, padding=1)
        convolution.weight, convolution.bias = layer.weight, layer.bias
        return convolution
    convolution = nn.Conv3d(wide, narrow, 3, padding=1, bias=False)
    convolution.weight = layer.weight
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution)


def critic_loss(detector: FAnoGAN, real: Tensor, z: Tensor, epsilon: Tensor, weight: float = 10.0) -> Tensor:
    """Eq. 2: ``real (B, 1, D, H, W)``, ``z (B, latent)``, ``epsilon (B,)``."""
    with torch.no_grad():
        fake = detector.generator(z)
    mixed = epsilon.view(-1, 1, 1, 1, 1) * real + (1 - epsilon.view(-1, 1, 1, 1, 1)) * fake
    mixed.requires_grad_()
    (gradient,) = torch.autograd.grad(detector.critic(mixed).sum(), mixed, create_graph=True)
    penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
    return detector.critic(fake).mean() - detector.critic(real).mean() + weight * penalty


def generator_loss(detector: FAnoGAN, z: Tensor) -> Tensor:
    """Eq. 3."""
    return -detector.critic(detector.generator(z)).mean()


def encoder_loss(detector: FAnoGAN, x: Tensor) -> Tensor:
    """Eq. 6."""
    return anomaly_score(detector, x).mean()


def anomaly_score(detector: FAnoGAN, x: Tensor) -> Tensor:
    """A(x) of each volume, ``(B,)``."""
    reconstruction = detector.decode(detector.encoder(x))
    image = (x - reconstruction).square().flatten(1).mean(1)
    features = detector.critic.features(x) - detector.critic.features(reconstruction)
    return image + detector.kappa * features.square().flatten(1).mean(1)


class PlainGAN:
    """Phase 1: a critic step and a generator step."""

    def __init__(self, detector: FAnoGAN) -> None:
        self.detector = detector
        detector.encoder.requires_grad_(False)
        self.critic = torch.optim.Adam(detector.critic.parameters(), 2e-4, (0.5, 0.9))
        self.generator = torch.optim.Adam(detector.generator.parameters(), 2e-4, (0.5, 0.9))

    def step(self, real: Tensor, noise: dict[str, Tensor]) -> None:
        """``noise``: ``z`` of both steps and ``epsilon``, drawn by the product."""
        self.detector.critic.requires_grad_(True)
        self.critic.zero_grad()
        critic_loss(self.detector, real, noise["critic"], noise["epsilon"]).backward()
        self.critic.step()
        self.detector.critic.requires_grad_(False)
        self.generator.zero_grad()
        generator_loss(self.detector, noise["generator"]).backward()
        self.generator.step()


class PlainEncoder:
    """Phases 2 and 3: a step on the networks in ``trained``."""

    def __init__(self, detector: FAnoGAN, trained: tuple[str, ...], rate: float) -> None:
        self.detector = detector.requires_grad_(False)
        networks = [getattr(detector, name).requires_grad_(True) for name in trained]
        self.optimizer = torch.optim.Adam([p for n in networks for p in n.parameters()], rate, (0.9, 0.999))

    def step(self, x: Tensor, noise: dict[str, Tensor]) -> None:
        """``noise`` is not needed."""
        self.optimizer.zero_grad()
        encoder_loss(self.detector, x).backward()
        self.optimizer.step()
