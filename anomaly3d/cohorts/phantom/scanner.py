"""One CT examination: how the head lies in the gantry, the slices that are taken, and their noise."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation


@dataclass(frozen=True)
class Scan:
    """Geometry and noise of one acquisition.

    ``affine`` leads from voxel to world (RAS mm), ``pose`` from MNI mm to world mm (rigid part and head size).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    pose: np.ndarray
    thickness: float
    noise: float  # HU, standard deviation after reconstruction
    kernel: float  # pixels, sigma of the reconstruction kernel


def draw_scan(rng: np.random.Generator, scale: np.ndarray, matrix: int, slices: int) -> Scan:
    """A brain protocol: about ``slices`` axial slices that cover the vertex and reach to the skull base.

    Rotation about 6 degrees about each axis, the head up to 20 mm off the isocentre, 0.85-1 mm pixels at 256.
    """
    thickness = float(rng.uniform(150, 175)) / slices
    pixel = float(rng.uniform(218, 250)) / matrix
    turn = Rotation.from_euler("xyz", np.clip(rng.normal(0, 6, 3), -15, 15), degrees=True)
    pose = np.eye(4)
    pose[:3, :3] = turn.as_matrix() * scale
    pose[:3, 3] = rng.uniform([-10, -12, -10], [10, 12, 10])
    top = (pose @ [0, -20, 82 + 14, 1])[2] + rng.uniform(2, 12)  # above the scalp
    affine = np.diag([-pixel, -pixel, thickness, 1.0])
    centre = pose[:3, 3] + pose[:3, :3] @ [0, -16, 0]
    affine[:2, 3] = centre[:2] * rng.uniform(0.2, 1.0, 2) + pixel * (matrix - 1) / 2
    affine[2, 3] = top - thickness * (slices - 1)
    return Scan(
        (matrix, matrix, slices),
        affine,
        pose,
        thickness,
        float(rng.uniform(3, 6)),
        float(rng.uniform(0.5, 0.8)),
    )


def acquire(hu: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    """Blur by the kernel, add noise of the same grain, clip to what a scanner stores: int16 in [-1024, 3071]."""
    sigma = (scan.kernel, scan.kernel, 0)
    noise = ndimage.gaussian_filter(rng.standard_normal(scan.shape, dtype=np.float32), sigma, truncate=3)
    blurred = ndimage.gaussian_filter(hu, sigma, truncate=3)
    return np.clip(np.rint(blurred + noise * (scan.noise / noise.std())), -1024, 3071).astype(np.int16)
