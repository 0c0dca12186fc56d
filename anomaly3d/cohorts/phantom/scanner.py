"""One CT examination: how the head lies in the gantry, the slices that are taken, and what the scanner adds."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anomaly3d.cohorts.phantom.versions import GLARE, Site

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
    overlap: float
    lean: tuple[float, float]  # of the cupping: to the right and to the front, a share at the skull
    glare: float


def draw_scan(rng: np.random.Generator, scale: np.ndarray, s: Site, matrix: int, slices: int) -> Scan:
    """A brain protocol of a site: axial slices from above the vertex to the skull base.

    Rotation about 6 degrees about each axis, the head up to 20 mm off the isocentre, 0.85-1 mm pixels at 256; gantry
    tilt up to 20 degrees as a sheared affine, the form in which converters that do not resample hand it on.
    """
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
        float(rng.uniform(*s.overlap)),
        (float(rng.normal(0, s.lean)), float(rng.normal(0, s.lean))),
        float(rng.uniform(*s.glare)),
    )


def acquire(hu: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
    """Blur by kernel and slice profile, spread the glare in plane, add noise of the same grain, clip to what a scanner
    stores: int16 in [-1024, 3071].
    """
    width = scan.kernel * scan.shape[0] / 256
    sigma = (width, width, scan.overlap)
    noise = ndimage.gaussian_filter(rng.standard_normal(scan.shape, dtype=np.float32), sigma, truncate=3)
    noise *= scan.noise / noise.std()
    sharp = ndimage.gaussian_filter(hu, sigma, truncate=3)
    if scan.glare:
        spread = GLARE / abs(scan.affine[0, 0])
        sharp += scan.glare * (ndimage.gaussian_filter(sharp, (spread, spread, 0), truncate=3) - sharp)
    noise += sharp
    return np.clip(np.rint(noise, out=noise), -1024, 3071, out=noise).astype(np.int16)
