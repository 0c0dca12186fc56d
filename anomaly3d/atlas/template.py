"""The CT-like template in MNI space that scans are registered to, painted from the MNI152 maps of nilearn."""

from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from anomaly3d.atlas.head import Appearance, head_maps, paint_brain, paint_skull, soft_step
from anomaly3d.scans.nifti import save_volume
from anomaly3d.scans.volume import Volume

SPACING = 2.0  # mm
LOW, HIGH = np.array([-94.0, -132.0, -92.0]), np.array([94.0, 98.0, 104.0])  # MNI mm, first and last voxel
NAME = "ct-mni152-v3"


def grid() -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the template."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = LOW
    nx, ny, nz = (np.rint((HIGH - LOW) / SPACING) + 1).astype(int)
    return affine, (int(nx), int(ny), int(nz))


def paint_template() -> np.ndarray:
    """HU and signed mm to the inner table on the template's grid: ``(2, X, Y, Z)`` float32."""
    affine, shape = grid()
    axes = [torch.arange(n, dtype=torch.float32) * SPACING + affine[i, 3] for i, n in enumerate(shape)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    maps, look = head_maps(), Appearance()
    inner_table, face = maps.sample(maps.skull, points)
    skull = paint_skull(inner_table, face, points[:, 2], look)
    brain, _ = paint_brain(maps.sample(maps.brain, points), look)
    hu = skull + (brain - skull) * soft_step(-inner_table, 2.0)
    return torch.stack([hu, inner_table]).reshape(2, *shape).numpy()


def build_template(data_dir: Path) -> Path:
    """Write the template under ``data_dir/template`` unless it is there, and return its path."""
    path = data_dir / "template" / f"{NAME}.nii.gz"
    if not path.exists():
        save_volume(path, np.moveaxis(paint_template(), 0, -1), grid()[0])
    return path


@lru_cache(maxsize=2)
def load_template(path: Path) -> tuple[Volume, Volume]:
    """The template in HU, and the signed distance to its inner table in mm (negative inside)."""
    image = nib.nifti1.Nifti1Image.from_filename(path)
    data = np.asarray(image.dataobj, np.float32)
    return Volume(data[..., 0], image.affine), Volume(data[..., 1], image.affine)
