"""Phase 2: the encoder against the frozen GAN (eqs. 4 to 6)."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics.classification import BinaryAUROC

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
        self.pseudo_auc = BinaryAUROC()

    def configure_optimizers(self) -> Optimizer:
        """One for all trained networks."""
        return self.optimizer([p for n in self.trained for p in getattr(self.detector, n).parameters()])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """L_E of ``image (B, 1, D, H, W)``."""
        return self.measure(batch["image"], "").mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """L_E on healthy validation scans, and how well it tells them from the same scans with something pasted in.

        ``phase.monitor`` names the one by which the best checkpoint is kept; neither knows of a test scan.
        """
        healthy = self.measure(batch["image"], "val_")
        x = batch["pseudo"]
        ill = self.detector.distances(x, self.detector.reconstruct(x))["total"]
        scores = torch.cat([healthy, ill])
        labels = torch.arange(len(scores), device=scores.device) >= len(healthy)
        self.pseudo_auc.update(scores / (1 + scores), labels.long())  # the metric wants [0, 1]; the order stays
        self.log(f"{self.name}/val_pseudo_auc", self.pseudo_auc, on_step=False, on_epoch=True, prog_bar=True)

    def measure(self, x: Tensor, prefix: str) -> Tensor:
        """L_E of each volume ``(B,)``; the batch's mean L_img, L_feat and L_E are logged as ``PHASE/{prefix}NAME``."""
        losses = self.detector.distances(x, self.detector.reconstruct(x))
        named = {f"{self.name}/{prefix}{'loss' if k == 'total' else k}": v.detach().mean() for k, v in losses.items()}
        self.log_dict(named, batch_size=len(x), sync_dist=bool(prefix), prog_bar=bool(prefix))
        return losses["total"]
