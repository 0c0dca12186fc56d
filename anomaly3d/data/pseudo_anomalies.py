"""Healthy volumes with something wrong pasted in, to choose between models and scores without a lesion label.

Each scan gets every kind once: a patch of another healthy brain from another place (wrong structure at the right
densities); a lump, brighter or darker; a shell along the brain's surface, brighter or darker; tissue pushed aside. What
does well here need not do well on real lesions; but nothing of a test set has been looked at. All of it lies inside the
brain mask, ``(D, H, W)`` bool: what prepared volumes show around it is smoothing.
"""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.scans.nifti import save_volume, voxels

VERSION = 3  # raised when the same scans would get other anomalies
RADIUS = (0.03, 0.16)  # of the longest side: 0.5 to 80 ml of a head
EDGE = 1.0  # voxels, softness of a patch's rim
SHIFT = (0.2, 0.8)  # units of [-1, 1]: 12 to 48 HU
THICKNESS = (0.02, 0.1)  # of a shell, of the longest side: 4 to 18 mm
PUSH = 0.35  # of a radius, by which tissue is pushed at most
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


def foreign_patch(
    volume: np.ndarray, brain: np.ndarray, donor: np.ndarray, donor_brain: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """An ellipsoid of ``donor`` from elsewhere, at a place of ``volume``; both ``(D, H, W)`` in [-1, 1]."""
    radii = rng.uniform(*RADIUS, 3) * max(volume.shape)
    centre = brain_point(brain, rng)
    for _ in range(TRIES):
        source = brain_point(donor_brain, rng)
        if np.linalg.norm(source - centre) > 1.5 * radii.max():
            break
    moved, there = (
        ndimage.shift(of, centre - source, order=0, mode="nearest") for of in (donor, donor_brain.astype(np.uint8))
    )
    share = np.clip((1 - ellipsoid(volume.shape, centre, radii)) * radii.mean() / EDGE, 0, 1)
    share = share * brain * there
    return volume + share.astype(np.float32) * (moved - volume)


def lump(volume: np.ndarray, brain: np.ndarray, rng: np.random.Generator, sign: int) -> np.ndarray:
    """A lump of smooth noise, brighter or darker, at a place of ``volume (D, H, W)`` in [-1, 1]."""
    radii = rng.uniform(*RADIUS, 3) * max(volume.shape)
    noise = ndimage.gaussian_filter(rng.standard_normal(volume.shape, dtype=np.float32), radii.mean() / 3)
    share = 0.5 * noise / noise.std() + 2 * (1 - ellipsoid(volume.shape, brain_point(brain, rng), radii))
    return shifted(volume, np.clip(share, 0, 1) * brain, sign * rng.uniform(*SHIFT))


def shell(volume: np.ndarray, brain: np.ndarray, rng: np.random.Generator, sign: int) -> np.ndarray:
    """A crescent under the brain's surface, brighter or darker, thickest at a place of it."""
    side = max(volume.shape)
    depth = ndimage.distance_transform_edt(brain)
    surface = np.argwhere((depth > 0) & (depth < 1.5))
    centre = surface[rng.integers(len(surface))]
    wide = 1 - ellipsoid(volume.shape, centre, np.full(3, rng.uniform(0.15, 0.45) * side)) ** 2
    thickness = max(rng.uniform(*THICKNESS) * side, 1.0) * wide.clip(0, 1)
    return shifted(volume, np.clip(thickness - depth + 1, 0, 1) * brain * (wide > 0), sign * rng.uniform(*SHIFT))


def shifted(volume: np.ndarray, share: np.ndarray, by: float) -> np.ndarray:
    """``volume`` plus ``by`` times ``share``, within [-1, 1]; outside of the brain as it was."""
    return np.where(share > 0, np.clip(volume + share * by, -1, 1), volume).astype(np.float32)


def displaced(volume: np.ndarray, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tissue pushed away from a place by up to ``PUSH`` of a radius, as something that grows there would."""
    radius = rng.uniform(0.1, 0.25) * max(volume.shape)
    centre = brain_point(brain, rng)
    offset = np.indices(volume.shape) - centre.reshape(3, 1, 1, 1)
    r = np.sqrt((offset**2).sum(0)) / radius
    shrink = 1 - PUSH * np.where(r < 1, (1 - r**2) ** 2, 0)  # where the tissue of each voxel was
    moved, there = (
        ndimage.map_coordinates(of, centre.reshape(3, 1, 1, 1) + offset * shrink, order=1, mode="nearest")
        for of in (volume, brain.astype(np.float32))
    )
    return np.where(brain & (there > 0.5), moved, volume).astype(np.float32)


KINDS = ("patch", "bright_lump", "dark_lump", "bright_shell", "dark_shell", "displaced")


def with_anomaly(
    volumes: list[np.ndarray], brains: list[np.ndarray], scan_ids: list[str], number: int, kind: str
) -> np.ndarray:
    """The ``number``-th volume with an anomaly of ``KINDS`` in its brain; patches come from the other volumes.

    A scan alone gets a bright lump in place of a patch.
    """
    volume, brain, rng = volumes[number], brains[number], rng_of(f"{scan_ids[number]} {kind}")
    others = [i for i in range(len(volumes)) if i != number]
    if kind == "patch" and others:
        donor = others[rng.integers(len(others))]
        return foreign_patch(volume, brain, volumes[donor], brains[donor], rng)
    if kind == "displaced":
        return displaced(volume, brain, rng)
    paste = shell if kind.endswith("shell") else lump
    return paste(volume, brain, rng, -1 if kind.startswith("dark") else 1)


def name_of(scan_id: str, kind: str) -> str:
    """The name of a scan with an anomaly; no scan of a manifest has a tilde in its own."""
    return f"{scan_id}~{kind}"


def base_of(name: str) -> str:
    """The scan that something was pasted into, or the scan itself."""
    return name.split("~")[0]


def write_pseudo_anomalies(
    folder: Path, images: list[str], brain_masks: list[str], scan_ids: list[str]
) -> pd.DataFrame:
    """Every scan with every kind of anomaly, as files ``folder/pseudo-vN-DIGEST/NAME.nii.gz``; makes what is missing.

    The digest is that of the scans' names: patches come from one scan into another, and where a scan has left the
    split, no patch of it may stay.

    Returns:
        A row a volume: ``number`` of the scan, ``kind``, ``scan_id`` of the new volume, ``image``, its file.
    """
    made = pd.DataFrame(
        [
            {"number": n, "kind": kind, "scan_id": name_of(scan_id, kind)}
            for n, scan_id in enumerate(scan_ids)
            for kind in KINDS
        ],
        columns=["number", "kind", "scan_id"],
    )
    place = folder / f"pseudo-v{VERSION}-{hashlib.sha256(repr(scan_ids).encode()).hexdigest()[:8]}"
    made["image"] = [str(place / f"{name}.nii.gz") for name in made["scan_id"]]
    newest = max((Path(file).stat().st_mtime_ns for file in (*images, *brain_masks)), default=0)
    if not all(path.exists() and path.stat().st_mtime_ns >= newest for path in map(Path, made["image"])):
        volumes, brains = [voxels(image) for image in images], [voxels(mask) > 0 for mask in brain_masks]
        for number, kind, path in zip(made["number"], made["kind"], made["image"], strict=True):
            affine = nib.nifti1.Nifti1Image.from_filename(images[number]).affine
            save_volume(Path(path), with_anomaly(volumes, brains, scan_ids, number, kind), affine)
    return made
