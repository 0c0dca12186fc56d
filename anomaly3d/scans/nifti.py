"""The NIfTI files that this program itself writes."""

from pathlib import Path

import nibabel as nib
import numpy as np

from anomaly3d.system.files import written_whole


def voxels(path: str | Path) -> np.ndarray:
    """What a NIfTI file of this program holds, ``(D, H, W)`` float32.

    nibabel at once, because MONAI's LoadImage imports every reader there is and warns about those it does not find.
    """
    return np.asarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj, np.float32)


def spacing_of(path: str | Path) -> np.ndarray:
    """Voxel size in mm along each axis of a NIfTI file of this program: ``(3,)``."""
    return np.asarray(nib.nifti1.Nifti1Image.from_filename(path).header.get_zooms()[:3], float)


def save_volume(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as a NIfTI file that is whole or not there."""
    with written_whole(path) as beside:
        nib.save(nib.nifti1.Nifti1Image(data, affine), beside)
