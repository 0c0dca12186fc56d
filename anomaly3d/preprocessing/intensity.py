"""Steps 5 to 7: fill, smooth, resize, window, scale. Global and fixed, never by the scan's own values."""

import numpy as np
from scipy import ndimage

from anomaly3d.scans.volume import Volume, resample


def fill_outside(hu: np.ndarray, share: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """HU clipped to the window, and by the share of each voxel that lies outside the brain the window's lower end.

    Both before any smoothing: air or bone blurred inwards would change the very rim where subdural blood lies.
    """
    return (share * np.clip(hu, *window) + (1 - share) * window[0]).astype(np.float32)


def smooth_and_resize(
    volume: Volume, affine: np.ndarray, resolution: int, fill: float, smoothing: float = 0.5
) -> np.ndarray:
    """Gaussian of ``smoothing`` down-sampling factors along each axis (in voxels), then linear interpolation."""
    factor = np.linalg.norm(affine[:3, :3], axis=0) / volume.spacing
    smooth = ndimage.gaussian_filter(volume.data, smoothing * factor, mode="constant", cval=fill)
    return resample(Volume(smooth, volume.affine), affine, (resolution,) * 3, fill=fill)


def resize_mask(inside: np.ndarray, from_affine: np.ndarray, affine: np.ndarray, resolution: int) -> np.ndarray:
    """A mask, or shares of one, on the small grid: uint8, 1 where more than half lies inside."""
    share = smooth_and_resize(Volume(inside.astype(np.float32), from_affine), affine, resolution, 0.0)
    return (share > 0.5).astype(np.uint8)


def to_unit_range(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """The window's ends to -1 and 1: -20 HU -> -1, 40 HU -> 0, 100 HU -> 1."""
    low, high = window
    return ((np.clip(hu, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)
