"""Phase 1: a WGAN-GP on healthy volumes (eqs. 2 and 3)."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.losses import gradient_norm, gradient_penalty, interpolate
from anomaly3d.phases.base import OptimizerFactory, Phase

CRITIC, GENERATOR, EPSILON, SAMPLES = range(4)  # what random numbers are for


class GANPhase(Phase):
    """Critic and generator in turn; every batch is a critic step, every ``critic_steps``-th also a generator step.

    Args:
        lambda_gp: weight of the gradient penalty.
        critic_steps: critic steps for each generator step.
    """

    name = "gan"

    def __init__(
        self,
        detector: FAnoGAN,
        optimizer: OptimizerFactory,
        lambda_gp: float,
        critic_steps: int,
        seed: int = 0,
    ) -> None:
        super().__init__(detector, frozen=("encoder",), seed=seed)
        self.automatic_optimization = False
        self.optimizer, self.lambda_gp, self.critic_steps = optimizer, lambda_gp, critic_steps
        self.batches_seen = 0

    def configure_optimizers(self) -> list[Optimizer]:
        """One for the critic, one for the generator."""
        return [
            self.optimizer(self.detector.critic.parameters()),
            self.optimizer(self.detector.generator.parameters()),
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint["batches_seen"]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """A critic step on ``image (B, 1, D, H, W)``, and when it is its turn a generator step."""
        optimizers: Any = self.optimizers()
        critic_optimizer, generator_optimizer = optimizers
        self.critic_step(batch["image"], critic_optimizer)
        self.batches_seen += 1
        if self.batches_seen % self.critic_steps == 0:
            self.generator_step(len(batch["image"]), generator_optimizer)

    def critic_loss(self, real: Tensor, fake: Tensor, epsilon: Tensor) -> dict[str, Tensor]:
        """Eq. 2 as ``critic_loss``, and its parts. Real and generated volumes pass the critic together."""
        critic = self.detector.critic
        norm = gradient_norm(critic, interpolate(real, fake, epsilon))
        of_real, of_fake = critic(torch.cat([real, fake])).float().chunk(2)
        wasserstein, penalty = of_real.mean() - of_fake.mean(), gradient_penalty(norm)
        return {
            "critic_loss": -wasserstein + self.lambda_gp * penalty,
            "wasserstein": wasserstein,
            "penalty": penalty,
            "gradient_norm": norm.mean(),
        }

    def generator_loss(self, z: Tensor) -> Tensor:
        """Eq. 3."""
        return -self.detector.critic(self.detector.generator(z)).float().mean()

    def critic_step(self, real: Tensor, optimizer: Any) -> None:
        """Minimise eq. 2."""
        step, size = self.batches_seen, len(real)
        self.toggle_optimizer(optimizer)
        with torch.no_grad():
            fake = self.detector.generator(self.latent(size, step, CRITIC)).to(real.dtype)
        epsilon = torch.rand(size, generator=self.noise(step, EPSILON)).to(real.device)
        values = self.critic_loss(real, fake, epsilon)
        optimizer.zero_grad()
        self.manual_backward(values["critic_loss"])
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log_dict({f"gan/{k}": v.detach() for k, v in values.items()}, batch_size=size)

    def generator_step(self, size: int, optimizer: Any) -> None:
        """Minimise eq. 3."""
        self.toggle_optimizer(optimizer)
        loss = self.generator_loss(self.latent(size, self.batches_seen, GENERATOR))
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        self.log("gan/generator_loss", loss.detach(), batch_size=size, prog_bar=True)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """The critic's Wasserstein estimate on healthy validation scans: a growing gap to training is overfitting."""
        real = batch["image"]
        fake = self.detector.generator(self.latent(len(real), batch_idx, SAMPLES))
        estimate = self.detector.critic(real).float().mean() - self.detector.critic(fake).float().mean()
        self.log("gan/val_wasserstein", estimate, batch_size=len(real), sync_dist=True, prog_bar=True)
