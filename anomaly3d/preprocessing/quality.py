"""Step 2: can this scan be used? Numbers, thresholds, and a reason in words."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anomaly3d.scans.volume import Volume

AIR = -500.0  # HU: below it is air, whatever the calibration
DEEP = 8.0  # mm inside the mask: no bone is near
USUAL_SLICE = 4.5  # mm
IN_PLANE = 3.0  # mm, sigma: noise is gone, streaks and shifted slices are not


@dataclass(frozen=True)
class Quality:
    """What was measured on one scan."""

    registration: float  # correlation with the template
    turn_deg: float  # rotation between the header's axes and the head's
    coverage: float  # share of the template's brain inside the field of view
    brain_ml: float
    brain_hu: float  # mode inside the mask
    air_hu: float  # median of air
    noise_hu: float  # standard deviation of voxel noise in the brain
    streak_hu: float  # how much neighbouring slices differ where the brain is smooth: motion, streaks
    slice_mm: float
    slices: int


REASONS = {
    "registration": "registration to the template is poor, correlation",
    "turn_deg": "the head is turned against what the header says, in degrees",
    "coverage": "the field of view cuts the brain, share covered",
    "brain_ml": "implausible brain volume in ml",
    "brain_hu": "the brain is not where it should be in HU",
    "air_hu": "air is not where it should be in HU",
    "noise_hu": "noisy, standard deviation in HU",
    "streak_hu": "streaks or motion, difference of neighbouring slices in HU",
    "slice_mm": "slice spacing in mm",
    "slices": "number of slices",
}
OF_POSE = {  # whatever the modality
    name: REASONS[name] for name in ("registration", "turn_deg", "coverage", "brain_ml", "slice_mm", "slices")
}


def measure(
    scan: Volume,
    hu: np.ndarray,
    mask: np.ndarray,
    depth: np.ndarray,
    spacing: float,
    inner_table: Volume,
    mni_to_scan: np.ndarray,
    score: float,
) -> Quality:
    """Measure a registered scan.

    Args:
        scan: in HU on its own grid; ``hu (X, Y, Z)``, ``mask`` and the mm inside it ``depth`` are on the isotropic MNI
            grid of ``spacing`` mm.
        inner_table: the template's signed distance to it in mm, negative inside.
        score: of the registration.
    """
    slice_mm = float(scan.spacing.max())
    deep = depth > DEEP
    return Quality(
        **of_pose(scan, mask, spacing, inner_table, mni_to_scan, score),
        brain_hu=round(mode(hu[mask]), 2),
        air_hu=round(air(scan.data), 1),
        noise_hu=round(noise(hu, deep), 2),
        streak_hu=round(slice_difference(hu, deep, spacing, slice_mm), 2),
    )


def of_pose(
    scan: Volume, mask: np.ndarray, spacing: float, inner_table: Volume, mni_to_scan: np.ndarray, score: float
) -> dict[str, Any]:
    """The numbers of ``OF_POSE``, arguments as for ``measure``."""
    slice_axis = int(scan.spacing.argmax())
    return {
        "registration": round(score, 4),
        "turn_deg": round(turn(mni_to_scan), 1),
        "coverage": round(coverage(scan, inner_table, mni_to_scan), 4),
        "brain_ml": round(float(mask.sum() * spacing**3 / 1000 * abs(np.linalg.det(mni_to_scan[:3, :3]))), 1),
        "slice_mm": round(float(scan.spacing[slice_axis]), 3),
        "slices": int(scan.data.shape[slice_axis]),
    }


def turn(mni_to_scan: np.ndarray) -> float:
    """Degrees of the rotation in an affine (its polar decomposition); nan for a mirrored one, which is no head's."""
    u, _, v = np.linalg.svd(mni_to_scan[:3, :3])
    if np.linalg.det(u @ v) < 0:
        return float("nan")
    return float(np.degrees(Rotation.from_matrix(u @ v).magnitude()))


def coverage(scan: Volume, inner_table: Volume, mni_to_scan: np.ndarray) -> float:
    """Share of the template's intracranial space, from the foramen magnum upwards, that the scan shows."""
    voxels = np.argwhere(inner_table.data < 0)[::20]
    mni = inner_table.affine @ np.c_[voxels, np.ones(len(voxels))].T
    mni = mni[:, mni[2] > -60]
    seen = (np.linalg.inv(scan.affine) @ mni_to_scan @ mni)[:3]
    return float(((seen > -0.5) & (seen < np.array(scan.data.shape)[:, None] - 0.5)).all(0).mean())


def mode(values: np.ndarray) -> float:
    """The most frequent HU of brain, from a smoothed histogram between -50 and 150."""
    counts, edges = np.histogram(values, bins=200, range=(-50, 150))
    return float(edges[ndimage.gaussian_filter1d(counts.astype(float), 3).argmax()] + 0.5)


def air(data: np.ndarray) -> float:
    """Median HU of air on every fourth voxel, nan where the scan shows none."""
    sample = data[::4, ::4]
    return float(np.median(sample[sample < AIR])) if (sample < AIR).any() else float("nan")


def robust_deviation(values: np.ndarray) -> float:
    """Standard deviation from the median absolute value, nan for no values."""
    return 1.4826 * float(np.median(np.abs(values))) if len(values) else float("nan")


def noise(hu: np.ndarray, deep: np.ndarray) -> float:
    """Standard deviation in HU of neighbouring voxels' difference along x and y, over the square root of two."""
    steps = [np.diff(hu, axis=axis)[np.delete(deep, 0, axis)] for axis in (0, 1)]
    return robust_deviation(np.concatenate(steps)) / 2**0.5


def slice_difference(hu: np.ndarray, deep: np.ndarray, spacing: float, slice_mm: float) -> float:
    """Deviation in HU of a slice from the mean of its neighbours, after smoothing in plane.

    Anatomy changes smoothly from slice to slice; streaks and the jumps of a moving head do not. What a smooth change
    leaves grows with the square of the slice spacing, and is scaled to ``USUAL_SLICE``.
    """
    step = max(2, round(slice_mm / spacing))
    low, high = np.flatnonzero(deep.any((0, 1)))[[0, -1]] if deep.any() else (0, 0)
    if high - low < 2 * step:
        return float("nan")
    part, inside = np.clip(hu[..., low : high + 1], -20, 100), deep[..., low : high + 1]
    sigma = IN_PLANE / spacing
    smooth = ndimage.gaussian_filter(part, (sigma, sigma, 0))
    second = smooth[..., step:-step] - (smooth[..., : -2 * step] + smooth[..., 2 * step :]) / 2
    return robust_deviation(second[inside[..., step:-step]]) / max(1.0, step * spacing / USUAL_SLICE) ** 2
