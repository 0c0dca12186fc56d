"""The template in MNI space that scans of a modality are registered to, painted from the MNI152 maps of nilearn."""

from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from anomaly3d.scans.nifti import save_volume
from anomaly3d.scans.volume import Volume

NAMES = {"ct": "ct-mni152-v3", "t1w": "t1w-mni152-v1", "t2w": "t2w-mni152-v1", "flair": "flair-mni152-v1"}


def build_template(data_dir: Path, modality: str = "ct") -> Path:
    """Write the template under ``data_dir/template`` unless it is there, and return its path."""
    path = data_dir / "template" / f"{NAMES[modality]}.nii.gz"
    if not path.exists():
        from anomaly3d.atlas.paint import grid, paint_template  # with torch, which workers do without

        save_volume(path, np.moveaxis(paint_template(modality), 0, -1), grid()[0])
    return path


@lru_cache(maxsize=4)
def load_template(path: Path) -> tuple[Volume, Volume]:
    """The template in its modality's values, and the signed distance to its inner table in mm (negative inside)."""
    image = nib.nifti1.Nifti1Image.from_filename(path)
    data = np.asarray(image.dataobj, np.float32)
    return Volume(data[..., 0], image.affine), Volume(data[..., 1], image.affine)
