"""Controls that learn little: a method that does not beat them has learned nothing of use.

All work on volumes ``(B, 1, D, H, W)`` in [-1, 1] whose third axis from the end runs from left to right.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings, Role
from anomaly3d.errors import UserError


def mean_square(x: Tensor) -> Tensor:
    """Mean of squares of each volume: ``(B, ...)`` -> ``(B,)``."""
    return x.square().flatten(1).mean(1)


class Control(Detector):
    """A trivial detector."""

    role: Role = "trivial"

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        """Nothing is learned."""


class BrightVolume(Control):
    """Share of voxels brighter than ``level``, where clotted blood starts."""

    title = "bright volume"

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        return Findings({"total": (x > self.level).float().flatten(1).mean(1)}, x.clamp(max=self.level))


class Mirror(Control):
    """Mean difference between the two sides of the head."""

    title = "difference of left and right"

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        return Findings({"total": (x - x.flip(2)).abs().flatten(1).mean(1)}, x.flip(2))


class MeanVolume(Control):
    """Mean squared distance to the average healthy training volume."""

    title = "distance to the mean healthy volume"
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.empty(0))

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        self.mean = train.mean(0)

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        return Findings({"total": mean_square(x - self.mean)}, self.mean.expand_as(x))


class ZScore(MeanVolume):
    """Mean squared deviation from the healthy mean in units of the healthy spread at each voxel.

    Args:
        floor: of the spread; where healthy volumes do not differ at all, rounding would decide.
    """

    title = "deviation from the healthy mean at each voxel"
    fewest = 3
    spread: Tensor

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.floor = floor
        self.register_buffer("spread", torch.empty(0))

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        super().fit(train, validation, brains)
        self.spread = train.std(0).clamp_min(self.floor)

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        return Findings({"total": mean_square((x - self.mean) / self.spread)}, self.mean.expand_as(x))


class PCA(MeanVolume):
    """Mean squared distance to the span of the healthy volumes' principal components.

    The more components, the smaller every residual, so their number is the one under which healthy validation volumes
    are most likely (probabilistic PCA, Tipping and Bishop 1999: the variance of each component, one variance for all
    the rest). Components come from the Gram matrix of the training volumes.

    Args:
        counts: numbers of components that validation chooses from.
    """

    title = "distance to the healthy principal components"
    fewest = 3
    components: Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.register_buffer("components", torch.empty(0))

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        super().fit(train, validation, brains)
        flat = (train - self.mean).flatten(1)
        values, vectors = torch.linalg.eigh((flat @ flat.T).double() / len(flat))
        order = values.argsort(descending=True)
        order = order[values[order] > 1e-6 * values.max()]
        variances = values[order]
        basis = F.normalize(vectors[:, order].T.float() @ flat, dim=1)
        rest = (validation - self.mean).flatten(1)
        squares, whole = (rest @ basis.T).double().square().mean(0), float(rest.double().square().sum(1).mean())
        dimensions = flat.shape[1]

        def surprise(count: int) -> float:
            """-2 log likelihood of a validation volume, up to a constant."""
            left = float(variances[count:].sum()) / (dimensions - count)
            fitted = (squares[:count] / variances[:count] + variances[:count].log()).sum()
            outside = (whole - float(squares[:count].sum())) / left
            return float(fitted) + outside + (dimensions - count) * math.log(left)

        counts = [count for count in self.counts if count < len(basis)]
        if not counts:
            raise UserError(
                f"{self.title}: {len(train)} training scans have {len(basis)} components, and none of "
                f"detector.module.counts={list(self.counts)} is fewer"
            )
        self.components = basis[: min(counts, key=surprise)].clone()

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        flat = (x - self.mean).flatten(1)
        nearest = ((flat @ self.components.T) @ self.components).view_as(x) + self.mean  # may leave [-1, 1]
        return Findings({"total": mean_square(x - nearest)}, nearest.clamp(-1, 1))


class Twin(Control):
    """An oracle for phantoms: it knows the same head without its lesion, from another scan with other noise.

    The score is the mean of the ``largest`` differences after smoothing over 3 voxels; what it misses is not in the
    image.
    """

    title = "the same head without its lesion"
    role: Role = "oracle"
    reads = ("twin",)

    def __init__(self, largest: int) -> None:
        super().__init__()
        self.largest = largest

    def examine(self, batch: Batch) -> Findings:
        smooth = F.avg_pool3d(batch["image"] - batch["twin"], 3, 1, 1).abs().flatten(1)
        largest = smooth.topk(min(self.largest, smooth.shape[1]), 1).values
        return Findings({"total": largest.mean(1)}, batch["twin"])
