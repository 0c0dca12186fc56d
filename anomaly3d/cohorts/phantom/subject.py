"""One person: age, sex, the shape of the head, and the look of the tissues. All random draws of a person are here."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import Appearance
from anomaly3d.cohorts.phantom.anatomy import Anatomy, draw_anatomy
from anomaly3d.cohorts.phantom.fields import smooth_noise
from anomaly3d.cohorts.phantom.folds import draw_folds
from anomaly3d.cohorts.phantom.versions import Version

SKULL_WARPS = ((45.0, 2.2), (24.0, 1.8))  # correlation length mm, standard deviation mm: head shape, asymmetry
BRAIN_WARPS = ((14.0, 2.0), (9.0, 1.5), (6.0, 1.0))  # lobes, gyri, sulci; these move the brain only


@dataclass(frozen=True)
class Subject:
    """A head's own shape: ``scale`` along right-left, front-back, up-down; fields on a lattice over MNI space.

    ``skull_warp (3, ...)`` mm moves skull and brain, ``brain_warp (3, ...)`` mm the brain in it. ``texture (3, ...)``:
    mm by which the inner table is thicker, HU added to brain tissue, and a factor on the width of sulci.
    """

    age: int
    sex: str
    scale: np.ndarray
    skull_warp: Tensor
    brain_warp: Tensor
    texture: Tensor
    look: Appearance
    anatomy: Anatomy
    ventricle_asymmetry: float  # mm that the right ventricle's wall lies further out than the left's
    reserve: float  # 0 to 1: how much of a bleed's volume atrophy takes up before the brain moves
    sulcal: float  # factor on the width of folds
    cortex: float  # HU by which grey matter is further above white
    fossa: float  # HU by which the posterior fossa is brighter
    folds: Tensor | None  # see ``folds``; None: the average brain's blurred sulci


def draw_subject(rng: np.random.Generator, version: Version) -> Subject:
    """A healthy adult of 18-90 years.

    Ventricles and sulci widen from 45 on, men's heads are larger by 4 %, women past 50 may have a thick frontal bone
    (hyperostosis frontalis interna), white matter around the ventricles darkens in some of the old (leukoaraiosis).
    """
    age = int(rng.integers(18, 91))
    sex = str(rng.choice(["F", "M"]))
    decline = max(age - 45, 0) / 45
    size = 0.95 + (0.02 if sex == "M" else -0.02) + rng.normal(0, 0.02)
    texture = np.concatenate(
        [
            smooth_noise(rng, 8.0, 0.45, 1),
            smooth_noise(rng, 12.0, version.patchy, 1),
            1 + smooth_noise(rng, 14.0, 0.22, 1),
        ]
    )
    return Subject(
        age=age,
        sex=sex,
        scale=size * (1 + rng.normal(0, 0.025, 3)),
        skull_warp=torch.from_numpy(sum(smooth_noise(rng, *warp) for warp in SKULL_WARPS)),
        brain_warp=torch.from_numpy(sum(smooth_noise(rng, *warp) for warp in BRAIN_WARPS)),
        texture=torch.from_numpy(texture.astype(np.float32)),
        look=Appearance(
            skull=float(np.clip(rng.normal(6.5, 1.2), 4, 10)),
            scalp=float(np.clip(rng.normal(6, 1.5), 3, 10)),
            ventricle=float(np.clip(rng.normal(0.2 + 2.6 * decline, 0.9), -1.4, 6)),
            sulci=float(np.clip(rng.normal(0.85 + 0.7 * decline, 0.16), 0.5, 2.2)),
            hu_offset=float(rng.normal(0, version.tissue)),
            leukoaraiosis=float(np.clip(rng.normal(0.9 * decline - 0.2, 0.3), 0, 1)),
        ),
        anatomy=draw_anatomy(rng, age, sex, version.sella),
        ventricle_asymmetry=float(rng.normal(0, 0.8)),
        reserve=float(np.clip(0.6 * decline + rng.normal(0, 0.1), 0, 0.7)),
        sulcal=float(np.exp(rng.normal(0, version.sulci))),
        cortex=max(float(rng.normal(*version.cortex)), 0.0),
        fossa=float(rng.normal(*version.fossa)),
        folds=draw_folds(rng) if version.folded else None,
    )
