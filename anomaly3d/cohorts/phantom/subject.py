"""One person: age, sex, the shape of the head, and the look of the tissues. All random draws of a person are here."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from anomaly3d.head import ORIGIN, SHAPE, SPACING, Appearance

LATTICE = 6.0  # mm between the nodes of a deformation
WARPS = (  # (correlation length sigma mm, standard deviation mm, moves the skull too)
    (20.0, 2.8, True),
    (12.0, 1.8, False),
    (8.0, 1.2, False),
)


@dataclass(frozen=True)
class Subject:
    """A head's own shape: ``scale`` along right-left, front-back, up-down; warps in mm on a lattice."""

    age: int
    sex: str
    scale: np.ndarray  # (3,), 1 is the MNI head
    skull_warp: Tensor  # (3, X, Y, Z) mm, smooth, moves skull and brain
    brain_warp: Tensor  # (3, X, Y, Z) mm, finer, brain only
    look: Appearance


def smooth_noise(rng: np.random.Generator, sigma: float, deviation: float) -> np.ndarray:
    """A smooth vector field ``(3, X, Y, Z)`` on the lattice with the given standard deviation in mm."""
    shape = tuple(int(np.ceil(n * SPACING / LATTICE)) + 1 for n in SHAPE)
    noise = rng.standard_normal((3, *shape), dtype=np.float32)
    field = np.stack([ndimage.gaussian_filter(c, sigma / LATTICE, mode="wrap") for c in noise])
    return field * (deviation / field.std())


def add(fields: Iterable[np.ndarray]) -> Tensor:
    """The sum of vector fields."""
    return torch.from_numpy(np.sum(list(fields), axis=0))


def draw_subject(rng: np.random.Generator) -> Subject:
    """A healthy adult of 18-90 years; ventricles and sulci widen with age."""
    age = int(rng.integers(18, 91))
    sex = str(rng.choice(["F", "M"]))
    decline = max(age - 45, 0) / 45
    size = 0.95 + (0.02 if sex == "M" else -0.02) + rng.normal(0, 0.02)
    warps = [(smooth_noise(rng, sigma, deviation), moves_skull) for sigma, deviation, moves_skull in WARPS]
    return Subject(
        age=age,
        sex=sex,
        scale=size * (1 + rng.normal(0, 0.025, 3)),
        skull_warp=add(w for w, moves_skull in warps if moves_skull),
        brain_warp=add(w for w, moves_skull in warps if not moves_skull),
        look=Appearance(
            skull=float(np.clip(rng.normal(6.5, 1.2), 4, 10)),
            scalp=float(np.clip(rng.normal(6, 1.5), 3, 10)),
            ventricle=float(np.clip(rng.normal(0.3 + 2.2 * decline, 0.8), -1.2, 5)),
            sulci=float(np.clip(rng.normal(0.9 + 0.6 * decline, 0.12), 0.6, 2)),
            hu_offset=float(rng.normal(0, 1.0)),
        ),
    )


def displacement(warp: Tensor, points: Tensor) -> Tensor:
    """A lattice field ``(3, X, Y, Z)`` at MNI ``points (N, 3)`` -> ``(N, 3)`` mm."""
    extent = torch.tensor([LATTICE * (n - 1) for n in warp.shape[1:]], dtype=torch.float32)
    unit = ((points - torch.tensor(ORIGIN, dtype=torch.float32)) * (2 / extent) - 1).flip(-1)
    sampled = F.grid_sample(warp[None], unit[None, None, None], padding_mode="border", align_corners=True)
    return sampled[0, :, 0, 0].T
