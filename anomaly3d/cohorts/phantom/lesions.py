"""Intracranial findings as shapes in MNI space: where blood is or dark tissue, and where the brain went.

Sources of the numbers. Density: of acute subdural blood 99 % is brighter than brain, of subacute 43 % as bright, 46 %
darker (Lee et al. 1997); of chronic 76 % darker (Scotti et al. 1977). Volume: InSilicoICH, the open simulator of the
FDA's laboratories, draws 0.1-60 ml and at least 45 HU; here 0.5-150 ml, skewed to small. Midline shift: in acute
subdurals of the same order as their thickness (Bartels et al. 2015), less where the brain is atrophic.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import head_maps, soft_step
from anomaly3d.cohorts.phantom.versions import Version

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


def draw_volume(rng: np.random.Generator, median: float, spread: float) -> float:
    """A volume in mm^3 from a lognormal in ml, between 0.5 and 150 ml."""
    return 1000 * float(np.clip(rng.lognormal(np.log(median), spread), 0.5, 150))


def clot(rng: np.random.Generator) -> float:
    """HU of clotted blood."""
    return float(np.clip(rng.normal(64, 6), 48, 80))


def convexity(rng: np.random.Generator) -> tuple[float, float, float]:
    """A direction to one side of the vault, from behind the forehead to the occiput."""
    azimuth, elevation = rng.uniform(np.deg2rad(-50), np.deg2rad(60)), rng.uniform(0, np.deg2rad(50))
    side = float(rng.choice([-1, 1]))
    x, y, z = np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
    return (float(side * x), float(y), float(z))


def draw_epidural(rng: np.random.Generator, reserve: float) -> ExtraAxial:
    """A lens: volume pi/2 R^2 T of a paraboloid, radius 1.3 to 2.4 times the thickness."""
    aspect = rng.uniform(1.3, 2.4)
    thickness = float(np.cbrt(2 * draw_volume(rng, 18, 1.1) / (np.pi * aspect**2)))
    return ExtraAxial(convexity(rng), thickness, aspect * thickness, False, clot(rng), 0.9 * (1 - reserve))


def draw_subdural(rng: np.random.Generator, reserve: float, thin: float = 0.0) -> ExtraAxial:
    """A crescent: bright (acute, 60 %), as bright as cortex (20 %) or darker (chronic, 20 %).

    A share ``thin`` of them is 1.5 to 4 mm thick.
    """
    volume = draw_volume(rng, 22, 1.1)
    radius = float(np.clip(18 * np.cbrt(volume / 1000) * rng.uniform(0.9, 1.5), 25, 75))
    thickness = float(np.clip(volume / (0.6 * np.pi * radius**2), 1.5, 35))
    kind = rng.random()
    hu = clot(rng) if kind < 0.6 else float(rng.uniform(30, 42)) if kind < 0.8 else float(rng.uniform(8, 25))
    if thin and rng.random() < thin:
        thickness = float(rng.uniform(1.5, 4))
    return ExtraAxial(convexity(rng), thickness, radius, True, hu, 0.9 * (1 - reserve))


def draw_focus(
    rng: np.random.Generator, volume: float, centre: np.ndarray, oedema: tuple[float, float]
) -> Intraparenchymal:
    """A lobulated bleed of a volume in mm^3 at a place."""
    radii = np.cbrt(3 * volume / (4 * np.pi)) * np.exp(rng.normal(0, 0.15, 3))
    lobes = rng.normal(0, 1 / radii.mean(), (3, 3))

    def triple(values: np.ndarray) -> tuple[float, float, float]:
        x, y, z = map(float, values)
        return x, y, z

    return Intraparenchymal(
        triple(centre),
        triple(radii),
        tuple(triple(lobe) for lobe in lobes),
        float(rng.uniform(*oedema)),
        clot(rng),
        0.7,
    )


def depth_at(centre: np.ndarray) -> float:
    """mm of an MNI place inside the inner table."""
    point = torch.tensor(centre[None], dtype=torch.float32)
    return -float(head_maps().sample(head_maps().skull[:1], point)[0, 0])


def draw_intraparenchymal(rng: np.random.Generator, reserve: float) -> Intraparenchymal:
    """A bleed in the depth of one hemisphere."""
    volume = draw_volume(rng, 12, 1.1)
    while True:
        centre = np.array([rng.choice([-1, 1]) * rng.uniform(12, 48), rng.uniform(-65, 40), rng.uniform(-5, 45)])
        if depth_at(centre) > 6 + 0.5 * np.cbrt(volume):
            return draw_focus(rng, volume, centre, (2, 10))


COUP = ((25, 52, -8), (14, 38, -16), (47, 8, -26), (54, -18, -18), (38, -82, -2), (45, 35, 5))  # MNI mm, mirrored


def draw_contusion(rng: np.random.Generator, reserve: float) -> Contusion:
    """Three to seven foci where the brain strikes the skull: under the frontal and temporal lobes, at the poles."""
    volume, count = draw_volume(rng, 6, 0.9), int(rng.integers(3, 8))
    middle = np.array(COUP[int(rng.integers(len(COUP)))]) * [rng.choice([-1, 1]), 1, 1]
    shares = rng.dirichlet(np.ones(count))
    foci: list[Intraparenchymal] = []
    while len(foci) < count:
        centre = middle + rng.normal(0, 4 + 0.5 * np.cbrt(volume), 3)
        if depth_at(centre) > 2:
            foci.append(draw_focus(rng, max(volume * shares[len(foci)], 60), centre, (3, 8)))
    return Contusion(tuple(foci))


def draw_subarachnoid(rng: np.random.Generator, reserve: float) -> Subarachnoid:
    """Blood in the Sylvian fissure, over the convexity or in the basal cisterns."""
    places = ((44, 4, 2), (40, -25, 50), (30, 35, 40), (0, -8, -18), (48, -50, 25))
    centre = np.array(places[int(rng.integers(len(places)))]) * [rng.choice([-1, 1]), 1, 1] + rng.normal(0, 6, 3)
    x, y, z = map(float, centre)
    return Subarachnoid((x, y, z), float(rng.uniform(16, 42)), float(rng.uniform(48, 68)))


def draw_intraventricular(rng: np.random.Generator, reserve: float) -> Intraventricular:
    """Blood in the occipital horns, or up to the middle of the ventricles."""
    return Intraventricular(float(rng.uniform(-40, -12)), float(rng.uniform(50, 70)))


TERRITORIES: dict[str, tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float]]] = {
    "middle cerebral": ((16, -5, 2), (1.0, 0.0, 0.25), (0.35, 0.8)),  # apex, axis on the right; half the angle's range
    "anterior cerebral": ((5, 15, 8), (0.15, 0.2, 1.0), (0.25, 0.45)),
    "posterior cerebral": ((10, -38, 2), (0.35, -1.0, 0.0), (0.35, 0.6)),
    "cerebellar": ((10, -48, -30), (0.6, -0.7, -0.35), (0.4, 0.8)),
}
# of ischaemic strokes by territory; the rest are small and deep. In Ng et al. 2007, of 2,213 middle cerebral 50.8 %
# and small vessels 12.8 %; the other shares are our guess
SHARES = (0.5, 0.07, 0.13, 0.1)


def draw_infarct(rng: np.random.Generator, reserve: float) -> Infarct:
    """An infarct of days (darker by 8 to 16 HU) or of months (nearly fluid)."""
    side = float(rng.choice([-1, 1]))
    hu = float(rng.uniform(18, 27) if rng.random() < 0.6 else rng.uniform(9, 16))
    pick = rng.random()
    for (apex, axis, sizes), share in zip(TERRITORIES.values(), np.cumsum(SHARES), strict=True):
        if pick < share:
            middle = np.array(axis) + rng.normal(0, 0.15, 3)
            x, y, z = map(float, middle / np.linalg.norm(middle))
            return Infarct((side * apex[0], apex[1], apex[2]), (side * x, y, z), float(rng.uniform(*sizes)), hu)
    x, y, z = (float(v) for v in rng.uniform((14, -20, -4), (27, 15, 20)))
    return Infarct((side * x, y, z), None, float(rng.uniform(3, 8)), hu)


def draw_tumour(rng: np.random.Generator, reserve: float) -> Intraparenchymal:
    """A mass about as dense as brain in much oedema (vasogenic, wider than a bleed's), which displaces its volume."""
    mass = draw_intraparenchymal(rng, reserve)
    return replace(mass, oedema_width=float(rng.uniform(8, 22)), hu=float(rng.uniform(26, 52)), mass_effect=1 - reserve)


def draw_white_matter(rng: np.random.Generator, reserve: float) -> WhiteMatter:
    """Six to thirty patches of 2 to 7 mm radius, most of them beside the ventricles."""
    count = int(rng.integers(6, 31))
    centres: list[tuple[float, float, float]] = []
    while len(centres) < count:
        x, y, z = (float(v) for v in rng.uniform((-45, -75, -5), (45, 50, 50)))
        point = torch.tensor([[x, y, z]], dtype=torch.float32)
        _, white, ventricle = head_maps().sample(head_maps().brain, point)[:, 0].tolist()
        if white > 0.8 and rng.random() < np.exp(-max(ventricle, 0) / 8):
            centres.append((x, y, z))
    return WhiteMatter(tuple(centres), tuple(rng.uniform(2, 7, count).tolist()), float(rng.uniform(16, 23)))


DRAW: dict[str, Callable[[np.random.Generator, float], Lesion]] = {
    "epidural": draw_epidural,
    "subdural": draw_subdural,
    "intraparenchymal": draw_intraparenchymal,
    "contusion": draw_contusion,
    "subarachnoid": draw_subarachnoid,
    "intraventricular": draw_intraventricular,
    "infarct": draw_infarct,
    "tumour": draw_tumour,
    "white_matter": draw_white_matter,
}


def draw_lesion(kind: str, rng: np.random.Generator, version: Version, reserve: float = 0.0) -> Lesion:
    """One of ``TYPES`` or ``OTHERS``; ``reserve`` is the person's (see ``Subject``)."""
    lesion = draw_subdural(rng, reserve, version.thin) if kind == "subdural" else DRAW[kind](rng, reserve)
    return replace(lesion, film=version.film) if isinstance(lesion, ExtraAxial) else lesion
