"""The MNI152 average of 152 healthy adults (Fonov et al. 2009), of which the nilearn package ships T1 and tissues."""

from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SPACING = 1.5  # mm, of the maps as they are used here
ORIGIN = np.array([-111.0, -150.0, -150.0])  # mm, centre of the first voxel
SHAPE = (149, 181, 181)


def world_axes() -> tuple[np.ndarray, ...]:
    """MNI mm along each axis of the head's maps: ``(149, 1, 1)``, ``(1, 181, 1)``, ``(1, 1, 181)``."""
    axes = [ORIGIN[i] + SPACING * np.arange(SHAPE[i], dtype=np.float32) for i in range(3)]
    return np.ix_(*(axis.astype(np.float32) for axis in axes))


def mni152_map(name: str) -> np.ndarray:
    """One of nilearn's maps (``gm``, ``wm``, ``t1``) on the head's grid, in [0, 1]."""
    nilearn = find_spec("nilearn")  # only its files are wanted: importing it takes 120 MB
    assert nilearn is not None
    assert nilearn.origin is not None
    path = Path(nilearn.origin).parent / "datasets" / "data" / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
    image = nib.nifti1.Nifti1Image.from_filename(path)
    data = np.asarray(image.dataobj, np.float32)
    data /= 255
    to_voxel = np.linalg.inv(image.affine)
    offset = to_voxel[:3, :3] @ ORIGIN + to_voxel[:3, 3]
    return ndimage.affine_transform(data, to_voxel[:3, :3] * SPACING, offset, SHAPE, order=1)
