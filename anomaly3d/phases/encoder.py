"""Phase 2: the encoder against the frozen GAN (eqs. 4 to 6)."""

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.phases.base import OptimizerFactory, Phase

NETWORKS = ("generator", "critic", "encoder")


class EncoderPhase(Phase):
    """Minimise L_E = L_img + kappa * L_feat over the networks named in ``trained``; the others are frozen."""

    name = "encoder"
    fixed_statistics = ("generator",)

    def __init__(
        self,
        detector: FAnoGAN,
        optimizer: OptimizerFactory,
        trained: tuple[str, ...] = ("encoder",),
        seed: int = 0,
    ) -> None:
        super().__init__(detector, frozen=tuple(n for n in NETWORKS if n not in trained), seed=seed)
        self.optimizer, self.trained = optimizer, tuple(trained)

    def configure_optimizers(self) -> Optimizer:
        """One for all trained networks."""
        return self.optimizer([p for n in self.trained for p in getattr(self.detector, n).parameters()])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """L_E of ``image (B, 1, D, H, W)``."""
        return self.measure(batch["image"], "")["total"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """L_E on healthy validation scans; the checkpoint with the lowest is kept."""
        self.measure(batch["image"], "val_")

    def measure(self, x: Tensor, prefix: str) -> dict[str, Tensor]:
        """The batch's mean L_img, L_feat and L_E, logged apart under ``PHASE/{prefix}NAME``."""
        losses = {k: v.mean() for k, v in self.detector.distances(x, self.detector.reconstruct(x)).items()}
        named = {f"{self.name}/{prefix}{'loss' if k == 'total' else k}": v.detach() for k, v in losses.items()}
        self.log_dict(named, batch_size=len(x), sync_dist=bool(prefix), prog_bar=bool(prefix))
        return losses
