"""What is bright in a healthy head and is not blood: dura, venous sinuses, calcifications, a thick frontal bone.

How often: pineal gland calcified in 68-71 % of adults, choroid plexus in 58-66 %, basal ganglia in 1-8 %, falx and
tentorium in 7 %, all more in the old (Daghighi et al. 2007, n = 1569; Kwak et al. 1988, n = 2877). Venous blood follows
the haematocrit and stays below 70 HU in the healthy (Black et al. 2011). Places are MNI mm and move with the brain.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import soft_step

DURA = 55.0  # HU


@dataclass(frozen=True)
class Spot:
    """An ellipsoid of one density."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float


@dataclass(frozen=True)
class Anatomy:
    """One person's bright structures. ``sinus_radii``: mm of the left and right transverse sinus."""

    spots: tuple[Spot, ...]
    venous_hu: float
    dura: float  # half the thickness of falx and tentorium in mm
    sinus_radii: tuple[float, float]
    frontal_bone: float  # mm that hyperostosis adds to the frontal bone's inside

    def paint(self, hu: Tensor, brain: Tensor, depth: Tensor) -> Tensor:
        """HU ``(N,)`` with the structures at ``brain (N, 3)``, MNI mm in the undeformed brain; ``depth`` mm inside."""
        x, y, z = brain.unbind(1)
        outside_callosum = ((y + 18) / 62) ** 2 + ((z - 10) / 38) ** 2 > 1
        falx = soft_step(self.dura - x.abs(), 1.5) * (outside_callosum & (z > -8)) * (depth > 0)
        sheet = -0.22 * x.abs() - 0.12 * (-y - 50)
        notch = (x / 24) ** 2 + ((y + 34) / 22) ** 2 < 1
        behind = (y < -32) & (y > -98) & ~notch & (depth > 0)
        tentorium = soft_step(self.dura - (z - sheet).abs(), 1.5) * behind
        hu = hu + (DURA - hu) * torch.maximum(falx, tentorium)
        sagittal = soft_step(4.0 - ((x**2) + (depth - 3) ** 2).sqrt(), 1.5) * (z > -6) * (y < 55)
        along = ((-50 - y) / 45).clamp(0, 1)
        straight = soft_step(2.2 - (x**2 + (z - 6 + 11 * along) ** 2).sqrt(), 1.5) * (y < -48) * (y > -98)
        left, right = self.sinus_radii
        radius = torch.where(x < 0, torch.full_like(x, left), torch.full_like(x, right))
        transverse = soft_step(radius - ((z - sheet) ** 2 + (depth - 4) ** 2).sqrt(), 1.5) * (y < -35)
        veins = torch.maximum(torch.maximum(sagittal, straight), transverse)
        hu = hu + (self.venous_hu - hu) * veins
        for spot in self.spots:
            near = torch.nonzero((brain - torch.tensor(spot.centre)).abs().amax(1) < max(spot.radii) + 2)[:, 0]
            offset = (brain[near] - torch.tensor(spot.centre)) / torch.tensor(spot.radii)
            share = soft_step((1 - offset.norm(dim=1)) * min(spot.radii), 1.5)
            hu[near] = hu[near] + (spot.hu - hu[near]) * share
        return hu

    def thicken(self, inner_table: Tensor, points: Tensor) -> Tensor:
        """The inner table ``(N,)`` moved inwards over the frontal lobes by hyperostosis, beside the midline."""
        x, y, z = points.unbind(1)
        frontal = torch.exp(-(((y - 60) / 22) ** 2) - ((z - 25) / 25) ** 2) * (x.abs() / 12).clamp(0, 1)
        return inner_table + self.frontal_bone * frontal


def draw_anatomy(rng: np.random.Generator, age: int, sex: str, sella: bool) -> Anatomy:
    """The bright structures of a person; ``sella``: also the pituitary gland and the sinuses beside it."""
    old = min(max((age - 20) / 60, 0), 1)
    spots = [Spot((0, 2, -31), (11, 8, 6), 45.0)] if sella else []

    def calcify(chance: float, centre: tuple[float, float, float], size: tuple[float, float]) -> None:
        if rng.random() < chance:
            radii = rng.uniform(*size) * np.exp(rng.normal(0, 0.15, 3))
            x, y, z = (float(c + n) for c, n in zip(centre, rng.normal(0, 1.0, 3), strict=True))
            a, b, c = map(float, radii)
            spots.append(Spot((x, y, z), (a, b, c), float(rng.uniform(80, 350))))

    calcify(0.3 + 0.5 * old, (0, -27, 1), (1.8, 4.0))  # pineal
    both = rng.random() < 0.35 + 0.4 * old
    for side in (-1, 1):
        calcify(0.9 if both else 0.08, (side * 23, -40, 8), (2.0, 5.0))  # choroid plexus
        calcify(0.01 + 0.07 * old, (side * 19, -4, -1), (2.5, 5.0))  # pallidum
    for _ in range(int(rng.poisson(0.05 + 0.15 * old))):  # falx
        centre = (0.0, float(rng.uniform(-50, 45)), float(rng.uniform(48, 68)))
        radii = (float(rng.uniform(1.2, 2.5)), float(rng.uniform(3, 12)), float(rng.uniform(2, 6)))
        spots.append(Spot(centre, radii, float(rng.uniform(80, 500))))
    thick = sex == "F" and age > 45 and rng.random() < 0.25
    return Anatomy(
        spots=tuple(spots),
        venous_hu=float(np.clip(rng.normal(55, 5), 44, 70)),
        dura=float(rng.uniform(0.5, 1.1)),
        sinus_radii=(float(rng.uniform(1.2, 4.5)), float(rng.uniform(2.5, 5.5))),
        frontal_bone=float(rng.uniform(1.5, 4.5)) if thick else 0.0,
    )
