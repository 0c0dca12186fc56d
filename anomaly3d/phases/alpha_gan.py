"""Another phase 1: the 3D alpha-WGAN-GP of Kwon et al. 2019, with an encoder and a critic of codes."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.detectors.losses import absolute_distance, critic_losses, twice
from anomaly3d.networks.gan import SLOPE
from anomaly3d.networks.layers import LeakyReLU
from anomaly3d.phases.base import OptimizerConfig
from anomaly3d.phases.gan import CRITIC, GENERATOR, GANPhase


class AlphaGANPhase(GANPhase):
    """A critic D tells volumes from G(E(x)) and G(z), a critic C tells z ~ N(0, I) from E(x); G and E learn from both.

    D minimises eq. 2 over both kinds of generated volumes, C minimises eq. 2 over codes. G and E minimise
    lambda_image * mean |x - G(E(x))| - D(G(E(x))) - D(G(z)) - C(E(x)). C belongs to the phase: nothing later needs it.

    Args:
        lambda_image: weight of the reconstruction, 10 in the paper.
        code_width: of both hidden layers of C, 4096 in the paper.
        others: as for ``GANPhase``.
    """

    name = "alpha_gan"
    can_score = True
    generating = ("encoder", "generator")
    idle = ()

    def __init__(
        self,
        detector: FAnoGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        lambda_gp: float,
        critic_steps: int,
        lambda_image: float,
        code_width: int,
        generator_optimizer: OptimizerConfig | None = None,
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
        penalty: str = "exact",
        penalty_every: int = 4,
    ) -> None:
        more = (generator_optimizer, scheduler, seed, penalty, penalty_every)
        super().__init__(detector, optimizer, lambda_gp, critic_steps, *more)
        self.save_hyperparameters({"lambda_image": lambda_image, "code_width": code_width}, logger=False)
        self.lambda_image = lambda_image
        sides = (self.detector.model.latent, code_width, code_width)
        hidden = [m for a, b in pairwise(sides) for m in (nn.Linear(a, b), LeakyReLU(SLOPE))]
        self.code_critic = nn.Sequential(*hidden, nn.Linear(code_width, 1), nn.Flatten(0))

    def judging(self) -> list[nn.Parameter]:
        """Of D and C, whose losses share no weight, so that one step of Adam on their sum is one on each."""
        return [*super().judging(), *self.code_critic.parameters()]

    def critic_losses(self, real: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """D's loss with its parts, and of C's ``code_loss`` and ``code_wasserstein``."""
        size = len(real)
        z = self.codes(size, CRITIC)
        with torch.no_grad():
            codes = self.detector.encoder(real, *person).float()
            fake = torch.cat([self.detector.generator(code, *person) for code in (codes, z)]).to(real.dtype)
        epsilon = self.epsilon(size, 2)
        of_volumes = self.critic_loss(torch.cat([real, real]), fake, epsilon, *twice(person), each=2)
        of_codes = critic_losses(self.code_critic, z, codes, epsilon[:size], self.lambda_gp)
        return {
            **of_volumes,
            "critic_loss": of_volumes["critic_loss"] + of_codes["critic_loss"],
            "code_loss": of_codes["critic_loss"],
            "code_wasserstein": of_codes["wasserstein"],
        }

    def generator_losses(self, real: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """The loss of G and E; of its parts ``image``, the reconstruction before its weight."""
        codes = self.detector.encoder(real, *person).float()
        again = self.detector.generator(codes, *person)
        image = absolute_distance(real, again).mean()
        of_samples = self.generator_loss(self.codes(len(real), GENERATOR), *person)
        of_again = -self.detector.critic(again, *person).float().mean()
        of_codes = -self.code_critic(codes).float().mean()
        return {"generator_loss": self.lambda_image * image + of_again + of_samples + of_codes, "image": image}
