"""Smooth random fields on a lattice over the head: deformations and slow changes of tissue."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from anomaly3d.atlas.mni152 import ORIGIN, SHAPE, SPACING

LATTICE = 6.0  # mm between nodes


def smooth_noise(
    rng: np.random.Generator, sigma: float, deviation: float, components: int = 3, lattice: float = LATTICE
) -> np.ndarray:
    """A field ``(components, X, Y, Z)`` with correlation length ``sigma`` mm and the given standard deviation."""
    shape = tuple(int(np.ceil(n * SPACING / lattice)) + 1 for n in SHAPE)
    noise = rng.standard_normal((components, *shape), dtype=np.float32)
    field = np.stack([ndimage.gaussian_filter(c, sigma / lattice, mode="wrap") for c in noise])
    return field * (deviation / field.std())


def sample_field(field: Tensor, points: Tensor, lattice: float = LATTICE) -> Tensor:
    """A lattice field ``(C, X, Y, Z)`` at MNI ``points (N, 3)`` in mm -> ``(N, C)``."""
    extent = torch.tensor([lattice * (n - 1) for n in field.shape[1:]], dtype=torch.float32)
    unit = ((points - torch.tensor(ORIGIN, dtype=torch.float32)) * (2 / extent) - 1).flip(-1)
    sampled = F.grid_sample(field[None], unit[None, None, None], padding_mode="border", align_corners=True)
    return sampled[0, :, 0, 0].T
