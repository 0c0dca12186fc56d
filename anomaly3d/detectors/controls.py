"""Controls that learn little: a method that does not beat them has learned nothing of use.

All work on volumes ``(B, 1, D, H, W)`` in [-1, 1] whose third axis from the end runs from left to right.
"""

import math
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.detectors.base import Detector, FittedDetector

FEWEST = 3  # training volumes from which a spread and a component can be told
BLOOD = 0.25  # 55 HU in the paper's window
COMPONENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # of the principal components, those that validation chooses from


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares of each volume: ``(B, ...)`` -> ``(B,)``."""
    return x.square().flatten(1).mean(1)


class BrightVolume(FittedDetector):
    """Share of voxels brighter than clotted blood starts to be; nothing is learned."""

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        return cls()

    def reconstruct(self, x: Tensor) -> Tensor:
        return x.clamp(max=BLOOD)

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": (x > BLOOD).float().flatten(1).mean(1)}


class Mirror(FittedDetector):
    """Mean difference between the two sides of the head; nothing is learned."""

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        return cls()

    def reconstruct(self, x: Tensor) -> Tensor:
        return x.flip(2)

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": (x - x.flip(2)).abs().flatten(1).mean(1)}


class MeanVolume(FittedDetector):
    """Mean squared distance to the average healthy training volume."""

    mean: Tensor

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        detector = cls()
        detector.register_buffer("mean", train.mean(0))
        return detector

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.mean.expand_as(x)

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": mean_square(x - self.mean)}


class ZScore(MeanVolume):
    """Mean squared deviation from the healthy mean in units of the healthy spread at each voxel."""

    spread: Tensor
    FLOOR = 0.02  # of the spread: 1.2 HU; where healthy volumes do not differ at all, rounding would decide

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        detector = super().fit(train, validation)
        detector.register_buffer("spread", train.std(0).clamp_min(cls.FLOOR))
        return detector

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": mean_square((x - self.mean) / self.spread)}


class PCA(MeanVolume):
    """Mean squared distance to the span of the healthy volumes' principal components.

    The more components, the smaller every residual, so their number is the one under which healthy validation volumes
    are most likely (probabilistic PCA, Tipping and Bishop 1999: the variance of each component, one variance for all
    the rest). Components come from the Gram matrix of the training volumes.
    """

    components: Tensor

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        detector = super().fit(train, validation)
        flat = (train - detector.mean).flatten(1)
        values, vectors = torch.linalg.eigh((flat @ flat.T).double() / len(flat))
        order = values.argsort(descending=True)
        order = order[values[order] > 1e-6 * values.max()]
        variances = values[order]
        basis = F.normalize(vectors[:, order].T.float() @ flat, dim=1)
        rest = (validation - detector.mean).flatten(1)
        squares, whole = (rest @ basis.T).double().square().mean(0), float(rest.double().square().sum(1).mean())
        dimensions = flat.shape[1]

        def surprise(count: int) -> float:
            """-2 log likelihood of a validation volume, up to a constant."""
            left = float(variances[count:].sum()) / (dimensions - count)
            fitted = (squares[:count] / variances[:count] + variances[:count].log()).sum()
            outside = (whole - float(squares[:count].sum())) / left
            return float(fitted) + outside + (dimensions - count) * math.log(left)

        chosen = min((c for c in COMPONENTS if c < len(basis)), key=surprise)
        detector.register_buffer("components", basis[:chosen].clone())
        return detector

    def reconstruct(self, x: Tensor) -> Tensor:
        flat = (x - self.mean).flatten(1)
        return ((flat @ self.components.T) @ self.components).view_as(x) + self.mean

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": mean_square(x - self.reconstruct(x))}


class Twin(Detector):
    """An oracle for phantoms: it knows the same head without its lesion, from another scan with other noise.

    The score is the mean of the largest differences after smoothing over 3 voxels; what it misses is not in the image.
    """

    LARGEST = 30  # voxels, about 0.5 ml

    def reconstruct(self, x: Tensor) -> Tensor:
        return x

    def score(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError("the twin of a scan is in its batch: call examine")

    def examine(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        smooth = F.avg_pool3d(batch["image"] - batch["twin"], 3, 1, 1).abs().flatten(1)
        largest = smooth.topk(min(self.LARGEST, smooth.shape[1]), 1).values
        return {"total": largest.mean(1)}, batch["twin"]


CONTROLS: dict[str, type[FittedDetector]] = {
    "bright_volume": BrightVolume,
    "mean_volume": MeanVolume,
    "zscore": ZScore,
    "mirror": Mirror,
    "pca": PCA,
}
