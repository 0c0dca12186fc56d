"""What surgery leaves behind (the paper's Fig. 7): a piece of skull that is missing, a catheter in a ventricle."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import soft_step
from anomaly3d.cohorts.phantom.draws import convexity
from anomaly3d.cohorts.phantom.lesions import BRAIN_CENTRE

KINDS = ("craniectomy", "shunt")
FLAP = 42.0  # HU: muscle, dura and scar where bone was
CATHETER = 350.0  # HU: silicone with barium, with partial volume


class Surgery(Protocol):
    """What an operation offers."""

    def paint(self, hu: Tensor, points: Tensor, inner_table: Tensor) -> Tensor:
        """HU ``(N,)`` after the operation, at MNI ``points (N, 3)`` of the head, ``inner_table (N,)`` mm outside it."""
        ...


@dataclass(frozen=True)
class Craniectomy:
    """A round opening of the vault: ``direction`` from the brain's centre to its middle, ``radius`` in mm."""

    direction: tuple[float, float, float]
    radius: float

    def paint(self, hu: Tensor, points: Tensor, inner_table: Tensor) -> Tensor:
        axis = torch.tensor(self.direction, dtype=torch.float32)
        offset = points - BRAIN_CENTRE
        along = offset @ axis
        distance = (offset - along[:, None] * axis).norm(dim=1)
        opening = soft_step(self.radius - distance, 2.0) * (along > 0) * (inner_table > -1.5)
        return torch.where(hu > FLAP, hu + (FLAP - hu) * opening, hu)


@dataclass(frozen=True)
class Shunt:
    """A catheter of 2.5 mm from outside of the skull to its ``tip`` in a ventricle."""

    entry: tuple[float, float, float]
    tip: tuple[float, float, float]

    def paint(self, hu: Tensor, points: Tensor, inner_table: Tensor) -> Tensor:
        entry, tip = torch.tensor(self.entry), torch.tensor(self.tip)
        way = tip - entry
        along = (((points - entry) @ way) / way.square().sum()).clamp(0, 1)
        distance = (points - entry - along[:, None] * way).norm(dim=1)
        return hu + (CATHETER - hu) * soft_step(1.25 - distance, 1.5)


def draw_postoperative(kind: str, rng: np.random.Generator) -> Surgery:
    """A hemicraniectomy 70 to 110 mm across, or a shunt from behind (Keen) or in front (Kocher) to a lateral ventricle.

    Raises:
        ValueError: not one of ``KINDS``.
    """
    if kind == "craniectomy":
        return Craniectomy(convexity(rng), float(rng.uniform(35, 55)))
    if kind == "shunt":
        side = float(rng.choice([-1, 1]))
        entry = ((32, 20, 75), (40, -85, 30))[int(rng.integers(2))]
        jitter = rng.normal(0, 3, 3)
        x, y, z = (float(c + j) for c, j in zip(entry, jitter, strict=True))
        return Shunt(
            (side * x * 1.1, y * 1.1, z * 1.1), (side * 9.0, float(rng.uniform(0, 14)), float(rng.uniform(8, 16)))
        )
    raise ValueError(f"{kind!r} is not one of {KINDS}")
