"""Voxels with their place in the world, and moving them from one grid to another."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage


@dataclass(frozen=True)
class Volume:
    """Voxels ``(X, Y, Z)`` float32 with the affine from voxel to world (RAS mm)."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def ml(self) -> float:
        """Volume of a mask of 0 and 1."""
        return float(self.data.sum(dtype=np.float64) * abs(np.linalg.det(self.affine[:3, :3])) / 1000)


def resample(
    volume: Volume,
    affine: np.ndarray,
    shape: tuple[int, ...],
    to_volume: np.ndarray | None = None,
    fill: float = 0,
) -> np.ndarray:
    """``volume`` on another grid by linear interpolation.

    Args:
        affine, shape: the new grid, voxel to its world in mm.
        to_volume: affine from the new grid's world to the volume's world; identity if None.
        fill: value outside the volume.
    """
    chain = np.linalg.inv(volume.affine) @ (np.eye(4) if to_volume is None else to_volume) @ affine
    data = volume.data.astype(np.float32, copy=False)
    return ndimage.affine_transform(data, chain[:3, :3], chain[:3, 3], shape, order=1, cval=fill)


def three_planes(volume: np.ndarray, centre: tuple[int, int, int] | None = None) -> list[np.ndarray]:
    """Axial, coronal and sagittal slices of ``(X, Y, Z, ...)`` on a RAS grid, upright, patient's right on the left.

    Args:
        centre: voxel that the slices go through; None: the middle.
    """
    x, y, z = centre or tuple(n // 2 for n in volume.shape[:3])
    return [np.flipud(cut.swapaxes(0, 1)) for cut in (volume[::-1, :, z], volume[::-1, y], volume[x])]


def side_by_side(volume: np.ndarray, centre: tuple[int, int, int] | None = None) -> np.ndarray:
    """``three_planes`` of ``(X, Y, Z)`` in a row, aligned at the bottom."""
    planes = three_planes(volume, centre)
    height = max(len(plane) for plane in planes)
    padded = [np.pad(p, ((height - len(p), 0), (0, 0)), constant_values=volume.min()) for p in planes]
    return np.concatenate(padded, axis=1)
