"""NIfTI files as images, masks and plain voxels."""

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.recipe import is_recipe, read_recipe
from anomaly3d.scans.volume import Volume
from anomaly3d.system.files import written_whole


def voxels(path: str | Path) -> np.ndarray:
    """What a NIfTI file of this program holds, ``(D, H, W)`` float32.

    nibabel at once, because MONAI's LoadImage imports every reader there is and warns about those it does not find.
    """
    return np.asarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj, np.float32)


def save_volume(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as a NIfTI file that is whole or not there."""
    with written_whole(path) as beside:
        nib.save(nib.nifti1.Nifti1Image(data, affine), beside)


def load_nifti(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI image whose data have been read; a recipe counts as one.

    Raises:
        UnreadableScan: with the reason.
    """
    try:
        image = read_recipe(path) if is_recipe(path) else nib.load(path)
        if not isinstance(image, nib.nifti1.Nifti1Image):
            raise UnreadableScan("not a NIfTI image")
        np.asanyarray(image.dataobj)
    except FileNotFoundError as error:
        raise UnreadableScan("the file does not exist") from error
    except nib.filebasedimages.ImageFileError as error:
        raise UnreadableScan("not a NIfTI image") from error
    except (EOFError, OSError, zlib.error, ValueError) as error:
        raise UnreadableScan("the file is damaged or cut short") from error
    return image


def load_mask(path: Path) -> Volume:
    """A mask file in its scan's world: 0 outside, 1 inside.

    Raises:
        UnreadableScan: not a volume.
    """
    image = nib.as_closest_canonical(load_nifti(path))
    if len(image.shape) != 3:
        raise UnreadableScan(f"its mask {path.name} is not a volume")
    return Volume((np.asarray(image.dataobj, np.float32) > 0).astype(np.float32), np.asarray(image.affine, float))
