"""Steps 5 to 7: fill, smooth, resize, window, scale. Global and fixed, never by the scan's own values."""

import numpy as np
from scipy import ndimage

from anomaly3d.scans.volume import Volume, resample


def fill_outside(hu: np.ndarray, mask: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """HU clipped to the window, the lower end of the window outside the mask.

    Both before any smoothing: air or bone blurred inwards would change the very rim where subdural blood lies.
    """
    return np.where(mask, np.clip(hu, *window), window[0]).astype(np.float32)


def fill_bone_rim(hu: np.ndarray, mask: np.ndarray, rim: np.ndarray, highest: float, steps: float) -> np.ndarray:
    """HU in which rim voxels that the skull shares have the mean of the soft tissue beside them.

    The mask reaches to the inner table so that blood on it is kept. Half a voxel of bone is brighter than blood, and
    all around the brain it would be the brightest thing in the picture; how bright depends on the slice thickness.

    Args:
        rim: where the skull is near; ``highest``: HU above which it is bone.
        steps: voxels that tissue may spread.
    """
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    part, mask, rim = hu[box], mask[box], rim[box]
    bone = mask & rim & (part > highest)
    tissue = mask & ~bone
    filled = np.where(tissue, part, 0).astype(np.float32)
    for _ in range(round(steps)):
        share = ndimage.uniform_filter(tissue.astype(np.float32), 3)
        mean = ndimage.uniform_filter(filled, 3) / np.maximum(share, 1e-6)
        reached = bone & ~tissue & (share > 1e-3)
        filled[reached] = mean[reached]
        tissue |= reached
    whole = hu.copy()
    whole[box] = np.where(bone & tissue, filled, part)
    return whole


def smooth_and_resize(
    volume: Volume, affine: np.ndarray, resolution: int, fill: float, smoothing: float = 0.5
) -> np.ndarray:
    """Gaussian of ``smoothing`` down-sampling factors along each axis (in voxels), then linear interpolation."""
    factor = np.linalg.norm(affine[:3, :3], axis=0) / volume.spacing
    smooth = ndimage.gaussian_filter(volume.data, smoothing * factor, mode="constant", cval=fill)
    return resample(Volume(smooth, volume.affine), affine, (resolution,) * 3, fill=fill)


def to_unit_range(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """The window's ends to -1 and 1: -20 HU -> -1, 40 HU -> 0, 100 HU -> 1."""
    low, high = window
    return ((np.clip(hu, low, high) - low) * (2 / (high - low)) - 1).astype(np.float32)
