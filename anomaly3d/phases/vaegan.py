"""The phase of AnoVAEGAN: as phase 1, with reconstructions in place of samples."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.anovaegan import AnoVAEGAN
from anomaly3d.phases.base import Alarm, OptimizerConfig, Phase, beside
from anomaly3d.phases.gan import CRITIC, GENERATOR, SAMPLES, GANPhase


class VAEGANPhase(GANPhase):
    """The critic learns to tell volumes from reconstructions, in turn with the VAE.

    The VAE minimises mean |x - x~| + beta * KL - adversarial * D(x~).

    Args:
        adversarial: weight of the critic's word.
        others: as for ``GANPhase``.
    """

    name = "vaegan"
    monitors = Phase.monitors
    can_score = True
    generating = ("encoder", "generator")
    idle = ()
    question = "Does it reconstruct what is healthy?"
    panels = (
        ("Loss of healthy validation heads", ("val_loss",)),
        ("Pasted anomalies told apart", ("val_pseudo_auc",)),
        ("Gradient norm: near 1", ("gradient_norm",)),
        ("Wasserstein estimate: falls as reconstructions get sharp", ("wasserstein",)),
    )
    alarms: ClassVar[tuple[Alarm, ...]] = tuple(a for a in GANPhase.alarms if a.number == "gradient_norm")
    detector: AnoVAEGAN  # type: ignore[assignment]

    def __init__(
        self,
        detector: AnoVAEGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        lambda_gp: float,
        critic_steps: int,
        adversarial: float,
        generator_optimizer: OptimizerConfig | None = None,
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
        penalty: str = "exact",
        penalty_every: int = 4,
    ) -> None:
        more = (generator_optimizer, scheduler, seed, penalty, penalty_every)
        super().__init__(detector, optimizer, lambda_gp, critic_steps, *more)
        self.save_hyperparameters({"adversarial": adversarial}, logger=False)
        self.adversarial = adversarial

    def critic_losses(self, real: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """Eq. 2 with reconstructions as what is generated."""
        with torch.no_grad(), self.seeded(self.batches_seen, CRITIC):
            fake = self.detector.autoencode(real)[0].to(real.dtype)
        return self.critic_loss(real, fake, self.epsilon(len(real)))

    def generator_losses(self, real: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """The VAE's loss and what the critic says of its reconstructions."""
        with self.seeded(self.batches_seen, GENERATOR):
            reconstruction, losses = self.detector.autoencode(real)
        word = self.detector.critic(reconstruction).float().mean()
        return {"generator_loss": losses["loss"] - self.adversarial * word, **losses}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The VAE's loss on healthy validation scans, and how well scores tell pasted anomalies apart."""
        with self.seeded(batch_idx, SAMPLES):
            loss = self.detector.loss(batch)["loss"]
        self.log_mean("val_loss", loss, len(batch["image"]))
        healthy, pseudo = (self.detector.quick_score({**batch, "image": x}) for x in (batch["image"], batch["pseudo"]))
        return self.tell_apart(healthy, pseudo)

    def health(self, data: HeadCTDataModule) -> dict[str, float]:
        return {}

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        return {"reconstructions": beside(batch["image"], self.detector.reconstruct(batch["image"]))}
