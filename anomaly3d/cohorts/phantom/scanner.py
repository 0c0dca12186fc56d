"""One CT examination: how the head lies in the gantry, the slices that are taken, and what the scanner adds."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

Range = tuple[float, float]


@dataclass(frozen=True)
class Site:
    """How a hospital scans; ranges are drawn from evenly."""

    thickness: Range  # mm
    noise: Range  # HU, standard deviation after reconstruction
    kernel: Range  # pixels at 256 x 256, sigma of the reconstruction kernel
    tilted: float  # share of scans with a tilted gantry
    offset: Range  # HU, mean and standard deviation of the calibration's error
    cupping: Range  # HU that beam hardening adds near the skull
    bar: Range  # HU of the bar between the petrous bones


SITES = {
    "A": Site((2.5, 5.0), (2.5, 4.5), (0.6, 0.9), 0.3, (0.0, 1.5), (2, 12), (4, 12)),
    "B": Site((1.0, 7.0), (4.0, 7.5), (0.4, 0.6), 0.6, (4.0, 2.0), (5, 18), (8, 20)),
}
USUAL_SLICES = 36  # of ``slices``, to which a site's thickness refers


@dataclass(frozen=True)
class Scan:
    """Geometry and physics of one acquisition.

    ``affine`` leads from voxel to world (RAS mm), ``pose`` from MNI mm to world mm (rigid part and head size).
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    pose: np.ndarray
    thickness: float
    noise: float
    kernel: float
    offset: float
    cupping: float
    bar: float


def draw_scan(rng: np.random.Generator, scale: np.ndarray, site: str, matrix: int, slices: int) -> Scan:
    """A brain protocol of a site: axial slices from above the vertex to the skull base.

    Rotation about 6 degrees about each axis, the head up to 20 mm off the isocentre, 0.85-1 mm pixels at 256; gantry
    tilt up to 20 degrees as a sheared affine, the form in which converters that do not resample hand it on.
    """
    s = SITES[site]
    thickness = float(rng.uniform(*s.thickness)) * USUAL_SLICES / slices
    pixel = float(rng.uniform(218, 250)) / matrix
    turn = Rotation.from_euler("xyz", np.clip(rng.normal(0, 6, 3), -15, 15), degrees=True)
    pose = np.eye(4)
    pose[:3, :3] = turn.as_matrix() * scale
    pose[:3, 3] = rng.uniform([-10, -12, -10], [10, 12, 10])
    top = (pose @ [0, -20, 82 + 14, 1])[2] + rng.uniform(2, 12)  # above the scalp
    count = round(float(rng.uniform(155, 180)) / thickness)
    affine = np.diag([-pixel, -pixel, thickness, 1.0])
    centre = pose[:3, 3] + pose[:3, :3] @ [0, -16, 0]
    affine[:2, 3] = centre[:2] * rng.uniform(0.2, 1.0, 2) + pixel * (matrix - 1) / 2
    affine[2, 3] = top - thickness * (count - 1)
    shear = np.tan(np.deg2rad(rng.uniform(-20, 20))) * thickness if rng.random() < s.tilted else 0.0
    affine[1, 2] = shear
    affine[1, 3] -= shear * (count - 1) / 2
    return Scan(
        (matrix, matrix, count),
        affine,
        pose,
        thickness,
        float(rng.uniform(*s.noise)),
        float(rng.uniform(*s.kernel)),
        float(rng.normal(*s.offset)),
        float(rng.uniform(*s.cupping)),
        float(rng.uniform(*s.bar)),
    )


def acquire(hu: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    """Blur by the kernel, add noise of the same grain, clip to what a scanner stores: int16 in [-1024, 3071]."""
    width = scan.kernel * scan.shape[0] / 256
    sigma = (width, width, 0)
    noise = ndimage.gaussian_filter(rng.standard_normal(scan.shape, dtype=np.float32), sigma, truncate=3)
    noise *= scan.noise / noise.std()
    noise += ndimage.gaussian_filter(hu, sigma, truncate=3)
    return np.clip(np.rint(noise, out=noise), -1024, 3071, out=noise).astype(np.int16)
