"""Which findings a phantom gets: place, size and density, drawn.

Sources of the numbers. Density: of acute subdural blood 99 % is brighter than brain, of subacute 43 % as bright, 46 %
darker (Lee et al. 1997); of chronic 76 % darker (Scotti et al. 1977). Volume: InSilicoICH, the open simulator of the
FDA's laboratories, draws 0.1-60 ml and at least 45 HU; here 0.5-150 ml, skewed to small. Midline shift: in acute
subdurals of the same order as their thickness (Bartels et al. 2015), less where the brain is atrophic.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from anomaly3d.atlas.head import head_maps
from anomaly3d.cohorts.phantom.lesions import (
    Contusion,
    ExtraAxial,
    Infarct,
    Intraparenchymal,
    Intraventricular,
    Lesion,
    Subarachnoid,
    WhiteMatter,
)
from anomaly3d.cohorts.phantom.versions import Version


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
