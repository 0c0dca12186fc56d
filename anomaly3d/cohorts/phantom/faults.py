"""What goes wrong with a scan (the paper's Fig. 7): a cut field of view, a wrong header, too little dose, streaks,
motion, and a registration that failed. Each takes HU ``(X, Y, S)`` int16 on axial slices and its affine.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anomaly3d.cohorts.phantom.tomography import ANGLES, project, reconstruct, rotate

Faulty = tuple[np.ndarray, np.ndarray]
SINOGRAM_WIDTH = 128  # voxels in plane of the grid on which artefacts are computed


def truncated(hu: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Faulty:
    """Slices missing at the vertex or the base: between 25 and 45 % of them."""
    lost = int(np.ceil(hu.shape[2] * rng.uniform(0.25, 0.45)))
    if rng.random() < 0.5:
        return hu[..., :-lost], affine
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 2] * lost
    return hu[..., lost:], moved


def wrong_orientation(hu: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Faulty:
    """A header that names other axes: front and back or top and bottom exchanged, or a quarter turn."""
    kind = rng.integers(0, 3)
    if kind < 2:
        return np.ascontiguousarray(np.flip(hu, 1 + int(kind))), affine
    turned = np.eye(4)
    axis = np.eye(3)[rng.integers(0, 3)]
    turned[:3, :3] = Rotation.from_rotvec(float(rng.choice([-90, 90])) * axis, degrees=True).as_matrix()
    return hu, turned @ affine


def low_dose(hu: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Faulty:
    """Noise of 15 to 35 HU, of a scanner's grain."""
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape, dtype=np.float32), (0.6, 0.6, 0))
    return to_stored(hu + noise * (rng.uniform(15, 35) / noise.std())), affine


def motion(hu: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Faulty:
    """In most slices the head turns by 3 to 8 degrees during the rotation of the tube."""

    def corrupt(slices: torch.Tensor, sinogram: torch.Tensor) -> torch.Tensor:
        moved = project(rotate(slices, float(rng.choice([-1, 1]) * rng.uniform(3, 8))))
        start = torch.from_numpy(rng.integers(ANGLES // 4, 3 * ANGLES // 4, len(slices)))
        start[torch.from_numpy(rng.random(len(slices)) < 0.3)] = ANGLES
        late = torch.arange(ANGLES)[None, :, None] >= start[:, None, None]
        return torch.where(late, moved, sinogram)

    return through_sinogram(hu, corrupt), affine


def streaks(hu: np.ndarray, affine: np.ndarray, rng: np.random.Generator) -> Faulty:
    """Two to four pieces of metal whose beams starve: their line integrals come out too low, and noisy."""

    def corrupt(slices: torch.Tensor, sinogram: torch.Tensor) -> torch.Tensor:
        n, count = slices.shape[-1], len(slices)
        head = slices > 0.5
        metal = torch.zeros_like(slices)
        s, y, x = torch.arange(count)[:, None, None], torch.arange(n)[:, None], torch.arange(n)
        for _ in range(int(rng.integers(2, 5))):
            inside = torch.nonzero((head & ((s - count / 2).abs() < count / 3)).flatten())
            at = [int(k) for k in np.unravel_index(int(inside[int(rng.integers(len(inside)))]), head.shape)]
            near = ((y - at[1]) ** 2 + (x - at[2]) ** 2) < rng.uniform(1.5, 3.0) ** 2
            metal[near & ((s - at[0]).abs() <= 0.15 * count)] = 6.0
        beams = project(metal)
        grain = torch.from_numpy(rng.standard_normal(tuple(beams.shape), dtype=np.float32))
        return sinogram + beams * (0.4 + 0.15 * grain)

    return through_sinogram(hu, corrupt), affine


def through_sinogram(hu: np.ndarray, corrupt: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> np.ndarray:
    """HU plus what a corrupted sinogram adds to them; ``corrupt(slices, sinogram)`` in units of water, air 0."""
    slices = torch.from_numpy(hu.astype(np.float32)).permute(2, 0, 1).clamp(-1000, 2000) / 1000 + 1
    small = F.interpolate(slices[None], size=(SINOGRAM_WIDTH, SINOGRAM_WIDTH), mode="area")[0]
    sinogram = project(small)
    artefact = reconstruct(corrupt(small, sinogram) - sinogram)
    full = F.interpolate(artefact[None], size=hu.shape[:2], mode="bilinear")[0] * 1000
    return to_stored(hu + full.permute(1, 2, 0).numpy())


def to_stored(hu: np.ndarray) -> np.ndarray:
    """What a scanner stores: int16 in [-1024, 3071]."""
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


FAULTS: dict[str, Callable[[np.ndarray, np.ndarray, np.random.Generator], Faulty]] = {
    "truncated": truncated,
    "wrong_orientation": wrong_orientation,
    "low_dose": low_dose,
    "motion": motion,
    "streaks": streaks,
}


def transform_fault(rng: np.random.Generator) -> np.ndarray:
    """A registration gone wrong, 4x4 in MNI mm: turned by 15-40 degrees, shifted by 12-40 mm or scaled by 12-35 %."""
    fault = np.eye(4)
    axis = rng.standard_normal(3)
    axis /= np.linalg.norm(axis)
    kind = rng.integers(0, 3)
    if kind == 0:
        fault[:3, :3] = Rotation.from_rotvec(rng.uniform(15, 40) * axis, degrees=True).as_matrix()
    elif kind == 1:
        fault[:3, 3] = rng.uniform(12, 40) * axis
    else:
        fault[:3, :3] *= (1 + rng.uniform(0.12, 0.35)) ** float(rng.choice([-1, 1]))
    return fault
