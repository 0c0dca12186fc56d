"""A head in MNI space, made from the MNI152 grey- and white-matter maps that the nilearn package ships.

Phantom cohort and registration template are both painted from it. The maps hold the brain only; skull, scalp, face
and neck are added here: the vault as shells at a distance from the inner table, the face as a short list of solids.
Coordinates are MNI millimetres, axes right, anterior, superior.
"""

from dataclasses import dataclass
from functools import cache

import edt
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from anomaly3d.atlas.mni152 import ORIGIN, SHAPE, SPACING, mni152_map, world_axes
from anomaly3d.system.memory import release_memory

AIR, FAT, MUSCLE, CSF, WHITE, GREY, DURA = -1000.0, -90.0, 50.0, 7.0, 28.0, 37.0, 45.0  # HU
CORTICAL_BONE, DIPLOE, CANCELLOUS_BONE = 1350.0, 600.0, 350.0  # HU


@dataclass(frozen=True)
class Solid:
    """An ellipsoid of one tissue, mirrored to the other side where it does not lie in the midline."""

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    hu: float
    wall: float = 0.0  # mm of bone around it


# painted in order, so that later ones lie inside earlier ones
FACE = (
    Solid((0, 4, -70), (58, 52, 38), MUSCLE),  # what lies under the skull base
    Solid((0, 48, -78), (66, 58, 72), FAT),  # cheeks
    Solid((0, 46, -78), (58, 52, 66), MUSCLE),
    Solid((0, -30, -120), (62, 62, 80), FAT),  # neck
    Solid((0, -30, -120), (56, 56, 80), MUSCLE),
    Solid((48, -26, -52), (15, 20, 17), CANCELLOUS_BONE),  # mastoid
    Solid((36, -12, -42), (22, 9, 9), CORTICAL_BONE),  # petrous bone
    Solid((50, -30, -56), (9, 12, 10), -350.0),  # mastoid air cells
    Solid((0, -46, -110), (24, 20, 60), CANCELLOUS_BONE),  # cervical spine
    Solid((0, -20, -116), (15, 10, 50), CANCELLOUS_BONE),  # vertebral bodies
    Solid((0, 72, -92), (30, 24, 10), CORTICAL_BONE, 0.0),  # upper jaw and teeth
    Solid((0, 62, -92), (22, 24, 12), MUSCLE),  # palate, tongue
    Solid((46, 38, -100), (6, 16, 32), CORTICAL_BONE),  # ramus of the mandible
    Solid((0, 66, -122), (34, 28, 10), CORTICAL_BONE),  # body of the mandible
    Solid((0, 58, -120), (26, 26, 16), MUSCLE),
    Solid((58, 40, -52), (5, 34, 6), CORTICAL_BONE),  # zygomatic arch
    Solid((32, 60, -40), (19, 24, 18), FAT, 2.5),  # orbit
    Solid((32, 67, -40), (12, 12, 12), 15.0),  # globe
    Solid((27, 56, -72), (13, 18, 16), AIR, 2.0),  # maxillary sinus
    Solid((0, 68, -66), (11, 26, 22), AIR, 2.0),  # nasal cavity
    Solid((0, 68, -66), (2, 26, 22), CANCELLOUS_BONE),  # septum
    Solid((0, 30, -48), (11, 11, 9), AIR, 2.0),  # sphenoid sinus
    Solid((10, 80, -22), (8, 5, 9), AIR, 2.5),  # frontal sinus
    Solid((0, 14, -92), (9, 7, 34), AIR),  # pharynx
)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Millimetres to the surface of a mask, negative inside, accurate to about half a voxel."""
    distance = edt.edt(~mask, parallel=1) - edt.edt(mask, parallel=1)
    return np.float32(SPACING) * np.where(mask, distance + np.float32(0.5), distance - np.float32(0.5))


def intracranial_mask(brain: np.ndarray) -> np.ndarray:
    """The space inside the inner table: brain, cisterns, and a canal for the cord through the foramen magnum."""
    x, y, z = world_axes()
    distance = edt.edt(~brain, parallel=1) * SPACING
    closed = edt.edt(distance < 9, parallel=1) * SPACING > 9  # closes fissures, keeps the fossae apart
    vault = edt.edt(distance < 24, parallel=1) * SPACING > 24  # no groove along the sagittal sinus
    closed |= vault & (z > -10)
    rim = ndimage.gaussian_filter(closed.astype(np.float32), 2.0) > 0.5  # where published CT templates have bone
    rim[..., z.ravel() < -66] = False
    cord = ((x / 10) ** 2 + ((y + 44) / 10) ** 2 < 1) & (z < -55)
    return ndimage.binary_fill_holes(rim | cord)


def paint_face() -> np.ndarray:
    """HU outside the vault: solids in their order, mirrored, then softened by partial volume."""
    hu = np.full(SHAPE, AIR, np.float32)
    x, y, z = world_axes()
    x = np.abs(x)
    for solid in FACE:
        (cx, cy, cz), (rx, ry, rz) = solid.centre, solid.radii
        for margin, value in ((solid.wall, CORTICAL_BONE), (0.0, solid.hu)):
            if margin or value == solid.hu:
                r2 = ((x - cx) / (rx + margin)) ** 2 + ((y - cy) / (ry + margin)) ** 2
                hu[r2 + ((z - cz) / (rz + margin)) ** 2 < 1] = value
    return ndimage.gaussian_filter(hu, 0.6)


class HeadMaps:
    """Maps on one grid, sampled together by trilinear interpolation.

    ``skull``: ``(2, Z, Y, X)`` signed mm to the inner table (negative inside) and HU of face and neck.
    ``brain``: ``(3, Z, Y, X)`` grey matter, white matter, signed mm to the ventricles (negative inside).
    Slices lie one after the other because they are painted so, and each is read from the cache.
    """

    def __init__(self) -> None:
        x, y, z = world_axes()
        skull, brain = (np.empty((n, *SHAPE), np.float32) for n in (2, 3))  # filled in place: most of the memory
        brain[0], brain[1], t1 = (mni152_map(name) for name in ("gm", "wm", "t1"))
        skull[0] = signed_distance(intracranial_mask(t1 > 0.02))
        fluid = ((brain[0] + brain[1]) < 0.45) & (ndimage.uniform_filter(t1, 3) > 0.02) & (skull[0] < -20)
        del t1
        parts, _ = ndimage.label(fluid)
        seed = parts[(np.abs(x) < 18) & (np.abs(y + 5) < 25) & (np.abs(z - 18) < 8)]
        brain[2] = signed_distance(parts == np.bincount(seed[seed > 0]).argmax())
        skull[1] = paint_face()
        self.skull, self.brain = (torch.from_numpy(maps.transpose(0, 3, 2, 1).copy()) for maps in (skull, brain))

    @staticmethod
    def sample(maps: Tensor, points: Tensor) -> Tensor:
        """Values of ``maps (C, Z, Y, X)`` at MNI ``points (N, 3)`` in mm -> ``(C, N)``; border values outside."""
        first = torch.tensor(ORIGIN, dtype=torch.float32)
        extent = SPACING * (torch.tensor(SHAPE, dtype=torch.float32) - 1)
        unit = (points - first) * (2 / extent) - 1
        sampled = F.grid_sample(
            maps[None], unit[None, None, None], mode="bilinear", padding_mode="border", align_corners=True
        )
        return sampled[0, :, 0, 0]


@cache
def head_maps() -> HeadMaps:
    """The maps, built once a process (about 3 s); what that took on the way is given back."""
    maps = HeadMaps()
    release_memory()
    return maps


@dataclass(frozen=True)
class Appearance:
    """What one head looks like on CT, apart from its shape. Lengths in mm."""

    skull: float = 6.0
    scalp: float = 6.0
    ventricle: float = 0.0  # the ventricles' wall moves outwards by this
    sulci: float = 1.0  # above 1 widens the sulci
    hu_offset: float = 0.0  # of brain tissue
    leukoaraiosis: float = 0.0  # 0 to 1: white matter around the ventricles darkens by up to 9 HU


@dataclass(frozen=True)
class Tissues:
    """How bright what lies inside the skull is; ``pale``: what leukoaraiosis adds to white matter at its worst,
    ``per_hu``: how much one HU of what makes persons differ is.
    """

    csf: float
    white: float
    grey: float
    pale: float
    per_hu: float = 1.0


CT_TISSUES = Tissues(CSF, WHITE, GREY, -9.0)


def soft_step(x: Tensor, width: float) -> Tensor:
    """0 to 1 around ``x = 0`` over about ``width`` mm: partial volume at a surface."""
    return (x / width + 0.5).clamp(0, 1)


def paint_skull(inner_table: Tensor, face: Tensor, height: Tensor, look: Appearance) -> Tensor:
    """HU outside the brain from the distance to the inner table, ``(N,)`` each; ``height`` is MNI z in mm.

    The vault has an inner and an outer table with diploe between; the base is thinner and has no scalp.
    """
    vault = soft_step(height + 35, 30)
    thickness = look.skull * (0.45 + 0.55 * vault)
    depth = inner_table / thickness  # 0 at the inner, 1 at the outer table
    bone = CORTICAL_BONE + (DIPLOE - CORTICAL_BONE) * torch.exp(-(((depth - 0.5) / 0.22) ** 2)) * vault
    scalp_depth = inner_table - thickness
    scalp = MUSCLE + (FAT - MUSCLE) * soft_step(scalp_depth - 0.3 * look.scalp, 1.5)
    in_scalp = soft_step(look.scalp - scalp_depth, 1.2) * vault
    outside = face + (scalp - face) * in_scalp * (face < -500)
    return outside + (bone - outside) * soft_step(-scalp_depth, 1.2)


def paint_brain(
    sampled: Tensor,
    look: Appearance,
    widening: Tensor | float = 0.0,
    sulci: Tensor | float = 1.0,
    values: Tissues = CT_TISSUES,
) -> tuple[Tensor, Tensor]:
    """``values`` (HU) inside the inner table and the share of CSF, ``(N,)`` each, from ``HeadMaps.brain`` at N points
    ``(3, N)``.

    ``widening`` in mm adds to the ventricles, ``sulci`` multiplies the width of the sulci, at each point.
    """
    grey, white, ventricle = sampled[0].clamp(0, 1), sampled[1].clamp(0, 1), sampled[2]
    fluid = (1 - grey - white).clamp(0, 1)
    fluid = fluid.clamp_min(1e-4) ** (1.6 / (look.sulci * sulci))  # the average brain's sulci are a blur
    tissue = (grey**1.5 * values.grey + white**1.5 * values.white) / (grey**1.5 + white**1.5).clamp_min(1e-6)
    tissue = torch.where(grey + white < 0.02, torch.full_like(tissue, values.csf), tissue)
    tissue = tissue + look.hu_offset * values.per_hu
    inside = soft_step(look.ventricle + widening - ventricle, 1.5)
    wall = (ventricle < 6).float()  # what the unmoved ventricle left inside its new wall is white matter
    fluid = torch.maximum(fluid * (1 - wall), inside)
    tissue = torch.where((wall > 0) & (grey + white < 0.5), torch.full_like(tissue, values.white), tissue)
    if look.leukoaraiosis:
        tissue = tissue + values.pale * look.leukoaraiosis * soft_step(9 - ventricle, 8) * torch.maximum(white, wall)
    return tissue + (values.csf - tissue) * fluid, fluid
