"""What lies inside the brain, and the findings of methods that compare a scan with its reconstruction there."""

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Findings
from anomaly3d.errors import UserError


def brain_of(batch: Batch) -> Tensor:
    """Where the brain is, ``(B, 1, D, H, W)`` bool.

    Raises:
        UserError: the batch has no masks. The volumes do not tell: around the brain they fall to -1 over some voxels.
    """
    if "brain" not in batch:
        raise UserError("this method judges the brain alone: give Scorer.examine the scans' brain masks too")
    return batch["brain"] > 0


def mean_inside(values: Tensor, brain: Tensor) -> Tensor:
    """Mean of ``values (B, 1, D, H, W)`` over the brain of each scan, ``(B,)``."""
    return (values * brain).flatten(1).sum(1) / voxels_inside(brain)


def voxels_inside(brain: Tensor) -> Tensor:
    """Size of each brain, ``(B,)``, at least 1."""
    return brain.flatten(1).sum(1).clamp(min=1)


def completed(x: Tensor, prediction: Tensor, brain: Tensor) -> Tensor:
    """The reconstruction: the prediction in [-1, 1] inside the brain, the scan itself where nothing is predicted."""
    return torch.where(brain, prediction.clamp(-1, 1), x)


def residual_findings(batch: Batch, prediction: Tensor) -> Findings:
    """``total``: mean absolute residual over the brain.

    Baur et al. 2018 and 2021, and Kascenas et al. 2022, take |x - x^| at each voxel; squares of it (the paper's eq. 4)
    come from scoring, as ``masked``.
    """
    x, brain = batch["image"], brain_of(batch)
    reconstruction = completed(x, prediction, brain)
    return Findings({"total": mean_inside((x - reconstruction).abs(), brain)}, reconstruction)
