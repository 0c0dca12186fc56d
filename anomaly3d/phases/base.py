"""What the phases share: the detector they train, memory layout, seeded noise, and scoring at test time."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly3d.detectors.base import Detector
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.hardware import memory_format

OptimizerFactory = Callable[..., Optimizer]


def freeze(module: nn.Module) -> None:
    """No gradients, and ``eval()``: running statistics of BatchNorm must not drift either."""
    module.requires_grad_(False)
    module.eval()


class Scoring(L.LightningModule):
    """Test a detector: ``test_step`` gives reconstruction and distances, a callback gathers them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Distances ``(B,)`` and reconstruction ``(B, 1, D, H, W)`` for each ``scan_id``."""
        distances, reconstruction = self.detector.examine(batch)
        return {
            "scan_id": batch["scan_id"],
            "distances": {k: v.cpu().double() for k, v in distances.items()},
            "reconstruction": reconstruction.float().cpu(),
        }


class Phase(Scoring):
    """A phase trains some networks of ``detector`` and keeps the others frozen.

    Args:
        frozen: names of the detector's networks that this phase must not change.
    """

    name: str
    detector: FAnoGAN
    fixed_statistics: tuple[str, ...] = ()  # networks whose BatchNorm uses running statistics, even when trained

    def __init__(self, detector: FAnoGAN, frozen: tuple[str, ...], seed: int) -> None:
        super().__init__(detector)
        self.frozen, self.seed = frozen, seed
        for network in frozen:
            freeze(getattr(detector, network))

    def train(self, mode: bool = True) -> "Phase":
        """As ``nn.Module.train``, but frozen networks stay in ``eval``: Lightning calls this after each validation."""
        super().train(mode)
        for network in (*self.frozen, *self.fixed_statistics):
            getattr(self.detector, network).eval()
        return self

    def configure_model(self) -> None:
        """Kernels in the layout in which the device trains fastest."""
        self.detector.to(memory_format=memory_format(self.trainer.strategy.root_device))  # type: ignore[call-overload]

    def noise(self, step: int, purpose: int) -> torch.Generator:
        """A generator that depends on seed, step, purpose and process only, so that a resumed run repeats."""
        key = (((self.seed * 10_000_019 + step) * 8 + purpose) * 1024 + self.global_rank) % 2**63
        return torch.Generator().manual_seed(key)

    def latent(self, batch: int, step: int, purpose: int) -> Tensor:
        """z ~ N(0, I): ``(B, latent)`` on the phase's device."""
        z = torch.randn(batch, self.detector.model.latent, generator=self.noise(step, purpose))
        return z.to(self.device)
