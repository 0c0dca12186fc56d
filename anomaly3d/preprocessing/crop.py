"""Step 4: the box that is kept, and the small grid laid into it."""

from dataclasses import dataclass

import numpy as np


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
