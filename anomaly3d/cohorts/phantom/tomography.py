"""Parallel-beam projections of slices and their filtered back-projection, for artefacts that arise in a sinogram."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ANGLES = 120  # over half a turn


def rotate(slices: Tensor, degrees: float) -> Tensor:
    """Slices ``(S, N, N)`` turned about their middle; zeros come in at the corners."""
    turn = math.radians(degrees)
    cos, sin = math.cos(turn), math.sin(turn)
    theta = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]])[None]
    grid = F.affine_grid(theta, [1, 1, *slices.shape[1:]], align_corners=False)
    return F.grid_sample(slices[None], grid, align_corners=False)[0]


def project(slices: Tensor) -> Tensor:
    """Line integrals in voxels: ``(S, N, N)`` -> ``(S, ANGLES, N)``."""
    return torch.stack([rotate(slices, 180 * a / ANGLES).sum(1) for a in range(ANGLES)], 1)


def reconstruct(sinogram: Tensor) -> Tensor:
    """Filtered back-projection with a ramp filter: ``(S, ANGLES, N)`` -> ``(S, N, N)``."""
    n = sinogram.shape[-1]
    ramp = 2 * torch.fft.rfftfreq(2 * n).abs()
    filtered = torch.fft.irfft(torch.fft.rfft(sinogram, 2 * n) * ramp, 2 * n)[..., :n]
    image = torch.zeros(len(sinogram), n, n)
    for a in range(ANGLES):
        image += rotate(filtered[:, a, None].expand(-1, n, -1), -180 * a / ANGLES)
    return image * math.pi / (2 * ANGLES)
