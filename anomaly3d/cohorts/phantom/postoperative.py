"""What surgery leaves behind (the paper's Fig. 7)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly3d.cohorts.phantom.lesions import BRAIN_CENTRE
from anomaly3d.head import soft_step

KINDS = ("craniectomy",)
FLAP = 42.0  # HU: muscle, dura and scar where bone was


@dataclass(frozen=True)
class Craniectomy:
    """A round opening of the vault: ``direction`` from the brain's centre to its middle, ``radius`` in mm."""

    direction: tuple[float, float, float]
    radius: float

    def paint(self, hu: Tensor, points: Tensor, inner_table: Tensor) -> Tensor:
        """HU ``(N,)`` at MNI ``points (N, 3)`` with soft tissue in place of bone."""
        axis = torch.tensor(self.direction, dtype=torch.float32)
        offset = points - BRAIN_CENTRE
        along = offset @ axis
        distance = (offset - along[:, None] * axis).norm(dim=1)
        open_ = soft_step(self.radius - distance, 2.0) * (along > 0) * (inner_table > -1.5)
        return torch.where(hu > FLAP, hu + (FLAP - hu) * open_, hu)


def draw_postoperative(kind: str, rng: np.random.Generator) -> Craniectomy:
    """A hemicraniectomy over one side, 70 to 110 mm across.

    Raises:
        ValueError: not one of ``KINDS``.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is not one of {KINDS}")
    azimuth, elevation = rng.uniform(-0.5, 0.6), rng.uniform(0.3, 0.8)
    side = float(rng.choice([-1, 1]))
    x, y, z = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    return Craniectomy((float(side * x), float(y), float(z)), float(rng.uniform(35, 55)))
