"""Healthy volumes with something wrong pasted in, to choose between models and scores without a lesion label.

Two kinds, in turn: a patch of another healthy brain from another place (wrong structure at the right densities), and a
blob, a lump of smooth noise (wrong density). What does well here need not do well on real lesions; but nothing of a
test set has been looked at.
"""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from anomaly3d.scans.nifti import save_volume, voxels

VERSION = 1  # raised when the same scans would get other anomalies
OUTSIDE = -0.999  # prepared volumes are exactly -1 outside of the brain
RADIUS = (0.05, 0.16)  # of the longest side
EDGE = 1.0  # voxels, softness of a patch's rim
SHIFT = (0.15, 0.6)  # of a blob, units of [-1, 1]: 9 to 36 HU, brighter or darker
TRIES = 50


def rng_of(scan_id: str) -> np.random.Generator:
    """The same random numbers for the same scan, in whatever order and process."""
    return np.random.default_rng(list(hashlib.sha256(scan_id.encode()).digest()[:8]))


def brain_point(brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A voxel inside the brain."""
    inside = np.flatnonzero(brain)
    return np.array(np.unravel_index(inside[rng.integers(len(inside))], brain.shape))


def ellipsoid(shape: tuple[int, ...], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Below 1 inside an ellipsoid, in units of its radii."""
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return np.sqrt(sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)))


def foreign_patch(volume: np.ndarray, donor: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An ellipsoid of ``donor`` from elsewhere, at a place of ``volume``; both ``(D, H, W)`` in [-1, 1]."""
    brain = volume > OUTSIDE
    radii = rng.uniform(*RADIUS, 3) * max(volume.shape)
    centre = brain_point(brain, rng)
    for _ in range(TRIES):
        source = brain_point(donor > OUTSIDE, rng)
        if np.linalg.norm(source - centre) > 1.5 * radii.max():
            break
    moved = ndimage.shift(donor, centre - source, order=0, mode="nearest")
    share = np.clip((1 - ellipsoid(volume.shape, centre, radii)) * radii.mean() / EDGE, 0, 1)
    share = share * brain * (moved > OUTSIDE)
    return volume + share.astype(np.float32) * (moved - volume)


def blob(volume: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A lump of smooth noise of another density at a place of ``volume (D, H, W)`` in [-1, 1]."""
    brain = volume > OUTSIDE
    radii = rng.uniform(*RADIUS, 3) * max(volume.shape)
    noise = ndimage.gaussian_filter(rng.standard_normal(volume.shape, dtype=np.float32), radii.mean() / 3)
    lump = 0.5 * noise / noise.std() + 2 * (1 - ellipsoid(volume.shape, brain_point(brain, rng), radii))
    share = (np.clip(lump, 0, 1) * brain).astype(np.float32)
    return np.clip(volume + share * (rng.choice([-1, 1]) * rng.uniform(*SHIFT)), -1, 1).astype(np.float32)


def with_anomaly(volumes: list[np.ndarray], scan_ids: list[str], number: int) -> np.ndarray:
    """The ``number``-th volume with one anomaly; patches come from the other volumes."""
    volume, rng = volumes[number], rng_of(scan_ids[number])
    others = [v for i, v in enumerate(volumes) if i != number]
    if number % 2 or not others:
        return blob(volume, rng)
    return foreign_patch(volume, others[rng.integers(len(others))], rng)


def write_pseudo_anomalies(folder: Path, images: list[str], scan_ids: list[str]) -> list[str]:
    """Volumes with an anomaly each as ``folder/pseudo-vN/ID.nii.gz``; makes what is missing and returns all paths."""
    paths = [folder / f"pseudo-v{VERSION}" / f"{scan_id}.nii.gz" for scan_id in scan_ids]
    newest = max((Path(image).stat().st_mtime_ns for image in images), default=0)
    if not all(path.exists() and path.stat().st_mtime_ns >= newest for path in paths):
        volumes = [voxels(image) for image in images]
        for number, (path, image) in enumerate(zip(paths, images, strict=True)):
            affine = nib.nifti1.Nifti1Image.from_filename(image).affine
            save_volume(path, with_anomaly(volumes, scan_ids, number), affine)
    return [str(path) for path in paths]
