"""Voxels as independent Gaussians: how far a scan lies from the mean that a network predicts for it."""

import math

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Findings
from anomaly3d.detectors.brain import brain_of, completed, mean_inside


def deviance(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """(x - mean)^2 / variance + log variance at each voxel: -2 log likelihood without its constant log 2 pi."""
    return (x - mean).square() * torch.exp(-log_variance) + log_variance


def mean_and_log_variance(prediction: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Of a network's two channels ``(B, 2, D, H, W)``: variance = exp(second) + floor^2, so that no voxel rules."""
    mean, raw = prediction.chunk(2, 1)
    return mean, torch.logaddexp(raw, torch.full_like(raw, 2 * math.log(floor)))


def gaussian_findings(batch: Batch, mean: Tensor, variance: Tensor) -> Findings:
    """``total``: mean over the brain of (x - mean)^2 / variance; map ``deviation``: (x - mean) / spread."""
    x, brain = batch["image"], brain_of(batch)
    reconstruction = completed(x, mean, brain)
    deviation = (x - reconstruction) / variance.sqrt()
    return Findings({"total": mean_inside(deviation.square(), brain)}, reconstruction, {"deviation": deviation})
