"""Phase 2: the encoder against the frozen GAN (eqs. 4 to 6)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.phases.base import Alarm, OptimizerConfig, Phase, beside

NETWORKS = ("generator", "critic", "encoder")
COUNT = 6  # volumes that health is measured on
SATURATED = 0.99  # |tanh| from which its gradient is gone


class EncoderPhase(Phase):
    """Minimise L_E = L_img + kappa * L_feat over the networks named in ``trained``; the others are frozen."""

    name = "encoder"
    fixed_statistics = ("generator",)
    question = "Does the encoder find healthy heads?"
    panels = (
        ("Loss of healthy validation heads", ("val_loss",)),
        ("Pasted anomalies told apart", ("val_pseudo_auc",)),
        ("Image over feature distance", ("health_balance",)),
        ("Saturated tanh outputs", ("health_saturation",)),
        ("Validation over training loss", ("health_gap",)),
    )
    alarms: ClassVar[tuple[Alarm, ...]] = (
        Alarm("saturation", 0, 0.5, "most of the encoder's tanh outputs are at -1 or 1 and learn no more"),
        Alarm(
            "balance", 0.02, 50, "one of image and feature distance is all of the loss; change detector.module.kappa"
        ),
        Alarm("val_loss", 0, float("inf"), "the reconstruction of healthy heads gets worse at once", 1, True),
        Alarm("gap", 0, 10, "healthy training heads are reconstructed far better than others: too few scans"),
    )
    detector: FAnoGAN

    def __init__(
        self,
        detector: FAnoGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        trained: tuple[str, ...] = ("encoder",),
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        frozen = tuple(n for n in NETWORKS if n not in trained)
        super().__init__(detector, optimizer, seed, frozen, scheduler, trained=list(trained))
        self.trained = tuple(trained)

    def configure_optimizers(self) -> Any:
        """One for all trained networks, and its schedule."""
        parameters = [p for n in self.trained for p in getattr(self.detector, n).parameters()]
        return self.scheduled(self.make_optimizer(parameters))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L_E of ``image (B, 1, D, H, W)``."""
        x = batch["image"]
        losses = self.detector.distances(x, self.detector.reconstruct(x))
        named = {f"{self.name}/{'loss' if k == 'total' else k}": v.detach().mean() for k, v in losses.items()}
        self.log_dict(named, batch_size=len(x))
        return losses["total"].mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """L_E on healthy validation scans, and how well it tells them from the same scans with something pasted in."""
        losses = self.detector.distances(batch["image"], self.detector.reconstruct(batch["image"]))
        for name, value in losses.items():
            self.log_mean(f"val_{'loss' if name == 'total' else name}", value.mean(), len(value))
        healthy, x = losses["total"], batch["pseudo"]
        return self.tell_apart(healthy, self.detector.distances(x, self.detector.reconstruct(x))["total"])

    def health(self, data: HeadCTDataModule) -> dict[str, float]:
        return self.balance(data.volumes("train"), data.volumes("validation"))

    @torch.no_grad()
    def balance(self, train: Tensor, validation: Tensor) -> dict[str, float]:
        """``saturation``: share of the encoder's outputs beyond ``SATURATED``. ``balance``: image over weighted feature
        distance. ``gap``: loss of healthy validation heads over that of training heads.

        Args:
            train, validation: healthy volumes ``(N, 1, D, H, W)``.
        """
        detector = self.detector
        losses = []
        for volumes in (train[:COUNT], validation[:COUNT]):
            x = volumes.to(self.device)
            z = detector.encoder(x)
            losses.append({k: float(v.mean()) for k, v in detector.distances(x, detector.decode(z)).items()})
        bounded = detector.model.encoder_output == "tanh"
        unseen = losses[1]
        return {
            "saturation": float((z.abs() > SATURATED).float().mean()) if bounded else 0.0,
            "balance": unseen["image"] / max(detector.kappa * unseen["feature"], 1e-12),
            "gap": unseen["total"] / max(losses[0]["total"], 1e-12),
        }

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        return {"reconstructions": beside(batch["image"], self.detector.reconstruct(batch["image"]))}
