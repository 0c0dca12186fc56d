"""Grids in MNI space: the one that masks are found on; step 4: the box that is kept, the small grid laid into it."""

from dataclasses import dataclass

import numpy as np

from anomaly3d.errors import UserError
from anomaly3d.scans.volume import Volume

WORKING_LOW, WORKING_HIGH = np.array([-84.0, -118.5, -73.5]), np.array([84.0, 85.5, 94.5])  # MNI mm: 6 beyond all masks
LOWEST = -70.0  # MNI mm of the template's brain
CROPS = ("template", "scan")


def working_grid(spacing: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the isotropic MNI grid on which masks are found."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = WORKING_LOW
    nx, ny, nz = (np.ceil((WORKING_HIGH - WORKING_LOW) / spacing).astype(int) + 1).tolist()
    return affine, (nx, ny, nz)


@dataclass(frozen=True)
class Box:
    """World mm of the outer faces of a box along the MNI axes: two ``(3,)``."""

    low: np.ndarray
    high: np.ndarray

    def grid(self, resolution: int) -> np.ndarray:
        """Affine of ``resolution^3`` voxels that fill the box exactly."""
        spacing = (self.high - self.low) / resolution
        affine = np.diag([*spacing, 1.0])
        affine[:3, 3] = self.low + spacing / 2
        return affine


def bounding_box(mask: np.ndarray, affine: np.ndarray, margin: float = 0.0) -> Box:
    """The box around a mask, in mm, with a margin; the affine must be diagonal.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("an empty mask has no bounding box")
    low, high = [], []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        step, origin = affine[axis, axis], affine[axis, 3]
        low.append(origin + (where[0] - 0.5) * step - margin)
        high.append(origin + (where[-1] + 0.5) * step + margin)
    return Box(np.array(low), np.array(high))


def check_crop(crop: str) -> None:
    """Refuse a ``crop`` that is not one of ``CROPS``.

    Raises:
        UserError: says which there are.
    """
    if crop not in CROPS:
        raise UserError(f"preprocessing.crop must be 'template' or 'scan', not {crop!r}")


def box_of(crop: str, margin: float, mask: np.ndarray, affine: np.ndarray, inner_table: Volume) -> Box:
    """``scan``: the box around the scan's own mask; ``template``: one for all scans, around the template's brain.

    Args:
        margin: mm around the template's brain; ``inner_table``: its signed mm.
    """
    if crop == "scan":
        return bounding_box(mask, affine)
    z = inner_table.affine[2, 3] + inner_table.affine[2, 2] * np.arange(inner_table.data.shape[2])
    return bounding_box((inner_table.data < 0) & (z > LOWEST), inner_table.affine, margin)
