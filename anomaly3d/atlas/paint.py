"""Painting the template, from the MNI152 maps of nilearn."""

import numpy as np
import torch

from anomaly3d.atlas.head import CT_TISSUES, Appearance, head_maps, paint_brain, paint_skull, soft_step
from anomaly3d.atlas.spin_echo import SEQUENCES

SPACING = 2.0  # mm
LOW, HIGH = np.array([-94.0, -132.0, -92.0]), np.array([94.0, 98.0, 104.0])  # MNI mm, first and last voxel


def grid() -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the template."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = LOW
    nx, ny, nz = (np.rint((HIGH - LOW) / SPACING) + 1).astype(int)
    return affine, (int(nx), int(ny), int(nz))


def paint_template(modality: str) -> np.ndarray:
    """The head and signed mm to the inner table on the template's grid: ``(2, X, Y, Z)`` float32.

    Args:
        modality: ``ct``, in HU; or of ``SEQUENCES``, white matter = 1.
    """
    affine, shape = grid()
    axes = [torch.arange(n, dtype=torch.float32) * SPACING + affine[i, 3] for i, n in enumerate(shape)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    maps, look = head_maps(), Appearance()
    inner_table, face = maps.sample(maps.skull, points)
    skull = paint_skull(inner_table, face, points[:, 2], look)
    sequence = SEQUENCES.get(modality)
    if sequence:
        skull = sequence.outside(skull)
    brain, _ = paint_brain(maps.sample(maps.brain, points), look, values=sequence.tissues if sequence else CT_TISSUES)
    head = skull + (brain - skull) * soft_step(-inner_table, 2.0)
    return torch.stack([head, inner_table]).reshape(2, *shape).numpy()
