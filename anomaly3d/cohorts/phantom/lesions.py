"""Intracranial bleeds as shapes in MNI space: where blood is, and where the brain went.

Every lesion answers two questions about points in MNI mm: ``fraction`` (blood, 0 to 1) and ``origin`` (the place the
tissue that is now here came from, so that the brain is displaced rather than erased).
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly3d.head import head_maps, soft_step

BRAIN_CENTRE = torch.tensor([0.0, -18.0, 8.0])  # MNI mm
TYPES = ("epidural", "subdural", "intraparenchymal")


class Lesion(Protocol):
    """What a bleed offers; ``points (N, 3)`` in MNI mm, ``depth (N,)`` mm inside the inner table."""

    @property
    def hu(self) -> float:
        """Density of the blood."""
        ...

    def fraction(self, points: Tensor, depth: Tensor) -> Tensor:
        """Share of blood at each point, ``(N,)`` in [0, 1]."""
        ...

    def origin(self, points: Tensor, depth: Tensor) -> Tensor:
        """Where the tissue at each point was before the bleed, ``(N, 3)``."""
        ...

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        """Share of oedema at each point, ``(N,)`` in [0, 1]."""
        ...


@dataclass(frozen=True)
class ExtraAxial:
    """Blood between inner table and brain: a lens (epidural) or a crescent on one side (subdural).

    Args:
        direction: unit vector from the brain's centre to the thickest place.
        thickness: mm there.
        radius: mm from the axis to the edge.
        crescent: flat-topped and kept to one side of the falx.
    """

    direction: tuple[float, float, float]
    thickness: float
    radius: float
    crescent: bool
    hu: float

    def _axis_distance(self, points: Tensor) -> tuple[Tensor, Tensor]:
        offset = points - BRAIN_CENTRE
        axis = torch.tensor(self.direction, dtype=torch.float32)
        along = offset @ axis
        return along, (offset - along[:, None] * axis).norm(dim=1)

    def _thickness(self, points: Tensor) -> Tensor:
        along, distance = self._axis_distance(points)
        profile = (1 - (distance / self.radius) ** (4 if self.crescent else 2)).clamp_min(0)
        if self.crescent:
            profile = profile * soft_step(points[:, 0] * np.sign(self.direction[0]) - 4, 4)
        return self.thickness * profile * soft_step(along - 10, 10)

    def fraction(self, points: Tensor, depth: Tensor) -> Tensor:
        return soft_step(self._thickness(points) - depth, 1.5) * (depth > 0)

    def origin(self, points: Tensor, depth: Tensor) -> Tensor:
        along, distance = self._axis_distance(points)
        push = self.thickness * torch.exp(-((distance / self.radius) ** 2)) * soft_step(along + 20, 60)
        push = torch.maximum(push, self._thickness(points))
        push = push * (1 - (depth - push).clamp(0, 80) / 80)
        return points + push[:, None] * torch.tensor(self.direction, dtype=torch.float32)

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(depth)


@dataclass(frozen=True)
class Intraparenchymal:
    """A lobulated ellipsoid of blood inside the brain with a rim of oedema.

    Tissue outside is pushed away radially so that ``mass_effect`` of the blood's volume is conserved:
    a shell now at radius r was at ``(r^3 - mass_effect * R^3)^(1/3)``.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    lobes: tuple[tuple[float, float, float], ...]  # wave vectors of the surface, 1/mm
    oedema_width: float
    hu: float
    mass_effect: float = 0.7

    def _radius(self, points: Tensor) -> tuple[Tensor, Tensor, float]:
        """Distance to the centre in a metric where the lesion is a ball, and that ball's radius."""
        mean = float(np.cbrt(np.prod(self.radii)))
        offset = points - torch.tensor(self.centre, dtype=torch.float32)
        r = (offset * (mean / torch.tensor(self.radii, dtype=torch.float32))).norm(dim=1)
        for wave in self.lobes:
            r = r * (1 + 0.10 * torch.sin(offset @ torch.tensor(wave, dtype=torch.float32)))
        return offset, r, mean

    def fraction(self, points: Tensor, depth: Tensor) -> Tensor:
        _, r, mean = self._radius(points)
        return soft_step(mean - r, 1.5) * (depth > 2)

    def origin(self, points: Tensor, depth: Tensor) -> Tensor:
        offset, r, mean = self._radius(points)
        before = (r**3 - self.mass_effect * mean**3).clamp_min(0) ** (1 / 3)
        shrink = 1 - before / r.clamp_min(1e-3)
        return points - (shrink * (depth / 12).clamp(0, 1))[:, None] * offset

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        _, r, mean = self._radius(points)
        return soft_step(mean + self.oedema_width - r, 4.0) * (depth > 2)


def draw_lesion(kind: str, rng: np.random.Generator) -> Lesion:
    """A bleed of one of ``TYPES`` with random place, size and density (HU 55-78, Rao 2016 for acute clotted blood)."""
    hu = float(rng.uniform(55, 78))
    side = float(rng.choice([-1, 1]))
    if kind == "intraparenchymal":
        volume = 1000 * float(np.clip(rng.lognormal(np.log(12), 0.8), 1.5, 90))  # mm^3
        radii = np.cbrt(3 * volume / (4 * np.pi)) * np.exp(rng.normal(0, 0.15, 3))
        while True:
            centre = np.array([side * rng.uniform(12, 45), rng.uniform(-65, 40), rng.uniform(-5, 45)])
            sampled = head_maps().sample(head_maps().skull, torch.tensor(centre[None], dtype=torch.float32))
            if -float(sampled[0, 0]) > 8 + 0.5 * radii.mean():
                break
        lobes = rng.normal(0, 1 / radii.mean(), (3, 3))
        return Intraparenchymal(tuple(centre), tuple(radii), tuple(map(tuple, lobes)), float(rng.uniform(2, 8)), hu)
    azimuth = rng.uniform(np.deg2rad(-50), np.deg2rad(60))  # from the ear: forwards positive
    elevation = rng.uniform(np.deg2rad(0), np.deg2rad(50))
    direction = (
        float(side * np.cos(elevation) * np.cos(azimuth)),
        float(np.cos(elevation) * np.sin(azimuth)),
        float(np.sin(elevation)),
    )
    if kind == "epidural":
        return ExtraAxial(direction, float(rng.uniform(8, 26)), float(rng.uniform(24, 42)), False, hu)
    return ExtraAxial(direction, float(rng.uniform(5, 15)), float(rng.uniform(50, 75)), True, hu)
