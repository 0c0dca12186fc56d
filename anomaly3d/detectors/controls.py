"""Trivial detectors: a learned one that does not beat them has learned nothing of use."""

import torch
from torch import Tensor

from anomaly3d.detectors.base import Detector


class BrightVolume(Detector):
    """Share of voxels brighter than clotted blood starts to be; nothing is learned.

    Args:
        threshold: in [-1, 1]; 0.25 is 55 HU in the paper's window.
    """

    def __init__(self, threshold: float = 0.25) -> None:
        super().__init__()
        self.threshold = threshold

    def reconstruct(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.threshold)

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": (x > self.threshold).float().flatten(1).mean(1)}


class MeanVolume(Detector):
    """Mean squared distance to the average healthy training volume."""

    mean: Tensor

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)

    @classmethod
    def fit(cls, volumes: list[Tensor]) -> "MeanVolume":
        """From healthy volumes ``(1, D, H, W)``."""
        return cls(torch.stack(volumes).mean(0))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.mean.expand_as(x)

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": (x - self.mean).square().flatten(1).mean(1)}
