"""Intracranial findings as shapes in MNI space: where blood is or dark tissue, and where the brain went."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import soft_step

BRAIN_CENTRE = torch.tensor([0.0, -18.0, 8.0])  # MNI mm
HALF_WIDTH = 75.0  # mm from there to the skull
TYPES = ("epidural", "subdural", "intraparenchymal", "contusion", "subarachnoid", "intraventricular")
OTHERS = ("infarct", "tumour", "white_matter")


@dataclass(frozen=True)
class Place:
    """Points inside the skull: ``points (N, 3)`` MNI mm, ``depth (N,)`` mm inside the inner table, ``fluid (N,)`` share
    of CSF, ``ventricle (N,)`` mm to the ventricles' wall (negative inside).
    """

    points: Tensor
    depth: Tensor
    fluid: Tensor
    ventricle: Tensor


class Lesion(Protocol):
    """What a bleed offers."""

    @property
    def hu(self) -> float:
        """Density of the blood."""
        ...

    def fraction(self, place: Place) -> Tensor:
        """Share of blood at each point, ``(N,)`` in [0, 1]."""
        ...

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        """From each point to where its tissue was before the bleed, ``(N, 3)`` mm."""
        ...

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        """Share of oedema at each point, ``(N,)`` in [0, 1]."""
        ...


@dataclass(frozen=True)
class ExtraAxial:
    """Blood between inner table and brain: a lens (epidural) or a crescent on one side (subdural).

    Args:
        direction: unit vector from the brain's centre to the thickest place.
        thickness: mm there; ``radius`` mm from the axis to the edge.
        crescent: flat-topped and kept to one side of the falx.
        mass_effect: mm of brain displacement a mm of blood.
        film: half a share of blood also lies where the thickness is 0 (version 3's fault).
    """

    direction: tuple[float, float, float]
    thickness: float
    radius: float
    crescent: bool
    hu: float
    mass_effect: float
    film: bool = True

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

    def fraction(self, place: Place) -> Tensor:
        thickness = self._thickness(place.points)
        if self.film:
            return soft_step(thickness - place.depth, 1.5) * (place.depth > 0)
        return soft_step(thickness - place.depth, 0.5) * (place.depth > 0) * (thickness > 0.3)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        """The blood's thickness beside it, less with the distance from the axis and towards the far side."""
        along, distance = self._axis_distance(points)
        wide = torch.exp(-((distance / (self.radius + 15)) ** 2)) * ((along + HALF_WIDTH) / (2 * HALF_WIDTH)).clamp(
            0, 1
        )
        amount = self.mass_effect * torch.maximum(self.thickness * wide, self._thickness(points))
        return amount[:, None] * torch.tensor(self.direction, dtype=torch.float32)

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
    mass_effect: float

    def _radius(self, points: Tensor) -> tuple[Tensor, Tensor, float]:
        """Distance to the centre in a metric where the lesion is a ball, and that ball's radius."""
        mean = float(np.cbrt(np.prod(self.radii)))
        offset = points - torch.tensor(self.centre, dtype=torch.float32)
        r = (offset * (mean / torch.tensor(self.radii, dtype=torch.float32))).norm(dim=1)
        for wave in self.lobes:
            r = r * (1 + 0.10 * torch.sin(offset @ torch.tensor(wave, dtype=torch.float32)))
        return offset, r, mean

    def fraction(self, place: Place) -> Tensor:
        _, r, mean = self._radius(place.points)
        return soft_step(mean - r, 1.5) * (place.depth > 1)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        offset, r, mean = self._radius(points)
        before = (r**3 - self.mass_effect * mean**3).clamp_min(0) ** (1 / 3)
        shrink = 1 - before / r.clamp_min(1e-3)
        return -(shrink * (depth / 12).clamp(0, 1))[:, None] * offset

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        _, r, mean = self._radius(points)
        return soft_step(mean + self.oedema_width - r, 4.0) * (depth > 2)


@dataclass(frozen=True)
class Contusion:
    """A cluster of small bleeds in swollen cortex."""

    foci: tuple[Intraparenchymal, ...]

    @property
    def hu(self) -> float:
        return self.foci[0].hu

    def fraction(self, place: Place) -> Tensor:
        return torch.stack([f.fraction(place) for f in self.foci]).amax(0)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.stack([f.push(points, depth) for f in self.foci]).sum(0)

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.stack([f.oedema(points, depth) for f in self.foci]).amax(0)


@dataclass(frozen=True)
class Subarachnoid:
    """Blood in place of the CSF of sulci and cisterns within ``radius`` mm of ``centre``."""

    centre: tuple[float, float, float]
    radius: float
    hu: float

    def fraction(self, place: Place) -> Tensor:
        near = soft_step(self.radius - (place.points - torch.tensor(self.centre)).norm(dim=1), 6.0)
        return near * soft_step(place.fluid - 0.3, 0.3) * (place.ventricle > 3) * (place.depth > 0)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(points)

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(depth)


@dataclass(frozen=True)
class Intraventricular:
    """Blood that has settled in the back of the ventricles of one who lies on it: all behind ``level`` (MNI y, mm)."""

    level: float
    hu: float

    def fraction(self, place: Place) -> Tensor:
        return soft_step(-place.ventricle, 1.5) * soft_step(self.level - place.points[:, 1], 2.0)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(points)

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(depth)


@dataclass(frozen=True)
class Infarct:
    """Dark tissue in a wedge: the territory of an artery from its ``apex`` outwards, or a ball at a small deep vessel.

    Args:
        axis: unit vector from the apex to the middle of the territory's cortex; None: a ball of ``size`` mm.
        size: half the wedge's angle in radians.
        hu: of infarcted tissue; fluid stays.
    """

    apex: tuple[float, float, float]
    axis: tuple[float, float, float] | None
    size: float
    hu: float

    def fraction(self, place: Place) -> Tensor:
        offset = place.points - torch.tensor(self.apex, dtype=torch.float32)
        far = offset.norm(dim=1)
        if self.axis is None:
            where = soft_step(self.size - far, 2.0)
        else:
            along = offset @ torch.tensor(self.axis, dtype=torch.float32)
            off_edge = far * (torch.acos((along / far.clamp_min(1e-3)).clamp(-1, 1)) - self.size)  # mm
            where = soft_step(-off_edge, 4.0) * soft_step(far - 4, 4.0)
        own_side = place.points[:, 0] * np.sign(self.apex[0]) > 1
        return where * own_side * (1 - place.fluid) * (place.ventricle > 1) * (place.depth > 1)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(points)

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(depth)


@dataclass(frozen=True)
class WhiteMatter:
    """Patches of damaged white matter: balls of ``radii`` mm around ``centres``; grey matter and fluid stay."""

    centres: tuple[tuple[float, float, float], ...]
    radii: tuple[float, ...]
    hu: float

    def fraction(self, place: Place) -> Tensor:
        share = torch.zeros_like(place.depth)
        for centre, radius in zip(self.centres, self.radii, strict=True):
            off = (place.points - torch.tensor(centre, dtype=torch.float32)).norm(dim=1)
            share = torch.maximum(share, soft_step(radius - off, 2.0))
        return share * (1 - place.fluid) * (place.ventricle > 0) * (place.depth > 4)

    def push(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(points)

    def oedema(self, points: Tensor, depth: Tensor) -> Tensor:
        return torch.zeros_like(depth)
