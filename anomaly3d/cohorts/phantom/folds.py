"""Sulci and cortex as crisp folds: the average brain's maps show them as a blur.

Sulci are the sheets on which a smooth random field is zero. The field's slope is about ``1 / (sqrt(2) * FOLD)`` a mm,
so that ``|field| * sqrt(2) * FOLD`` is about the distance to the nearest sheet. Sheets lie 13 mm apart on average along
a line (Rice's formula), as sulci do. The field is drawn out along the way to the surface, on which sulci stand upright.
"""

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import soft_step
from anomaly3d.cohorts.phantom.fields import sample_field, smooth_noise
from anomaly3d.cohorts.phantom.lesions import BRAIN_CENTRE

FOLD = 3.0  # mm, correlation length of the field
LATTICE = 2.5  # mm
RADIUS = 65.0  # mm from the brain's centre, from which folds run outwards, where they have their own width
RADIAL = 0.75  # 0: folds run in any direction, 1: straight outwards
CORTEX = 3.0  # mm
DEPTH = 18.0  # mm below the inner table that sulci reach
WIDTH = 2.0  # mm of a sulcus in the depth where ``Appearance.sulci`` is 1
MOUTH = 6.0  # mm below the inner table where sulci begin to widen, to twice that at the surface
BASAL = torch.tensor([[0.0, -4.0, -17.0], [24.0, 24.0, 12.0]])  # MNI mm, centre and radii: the basal cisterns
OPEN = 2.0  # by which those are wider than the average brain's blur shows


def draw_folds(rng: np.random.Generator) -> Tensor:
    """The field of one person, ``(1, ...)`` on a lattice over MNI space."""
    return torch.from_numpy(smooth_noise(rng, FOLD, 1.0, 1, LATTICE))


def fold(
    folds: Tensor, width: float, sulci: Tensor, sampled: Tensor, points: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor]:
    """``HeadMaps.brain`` at N points ``(3, N)`` with folds in the cerebral cortex, and the factor on sulci for
    ``paint_brain`` ``(N,)``, wider in the basal cisterns.

    Args:
        width: of this person's sulci, and ``sulci (N,)`` the factor on it at each point.
        points: ``(N, 3)`` MNI mm in the undeformed brain; ``depth (N,)`` mm inside the inner table.
    """
    grey, white = sampled[0].clamp(0, 1), sampled[1].clamp(0, 1)
    y, z = points[:, 1], points[:, 2]
    cerebellum = soft_step(-22 - z - 0.25 * (y + 60), 6.0) * soft_step(-30 - y, 6.0)
    cortical = ((0.8 - white) / 0.3).clamp(0, 1) * ((grey + white) / 0.15).clamp(0, 1)
    zone = cortical * (1 - cerebellum) * soft_step(DEPTH + 6 - depth, 8.0)
    offset = points - BRAIN_CENTRE
    stretch = (RADIUS / offset.norm(dim=1).clamp_min(20)) ** RADIAL
    field = sample_field(folds, BRAIN_CENTRE + offset * stretch[:, None], LATTICE)[:, 0]
    to_sheet = field.abs() * (2**0.5 * FOLD) / stretch
    half = 0.5 * WIDTH * width * sulci * (2 - depth / MOUTH).clamp(1, 2)
    sulcus = soft_step(half - to_sheet, 0.8) * soft_step(DEPTH - depth, 4.0)
    fissure = soft_step(1 - grey - white - 0.5, 0.3)  # wide ones, which the average brain has too
    ribbon = soft_step(CORTEX - torch.minimum(to_sheet - half, depth), 1.0)
    tissue = (1 - sulcus) * (1 - fissure)
    folded = torch.stack([tissue * ribbon, tissue * (1 - ribbon)])
    maps = torch.cat([torch.stack([grey, white]) * (1 - zone) + folded * zone, sampled[2:]])
    basal = 1 - ((points - BASAL[0]) / BASAL[1]).norm(dim=1)
    return maps, sulci * (1 + (OPEN - 1) * soft_step(basal, 0.5))
