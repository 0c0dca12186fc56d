"""The NIfTI files that this program itself writes."""

import gzip
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from anomaly3d.errors import UserError
from anomaly3d.system.files import written_whole

DAMAGE = (gzip.BadGzipFile, EOFError, zlib.error, ImageFileError, HeaderDataError, WrapStructError)


def voxels(path: str | Path) -> np.ndarray:
    """What a NIfTI file of this program holds, ``(D, H, W)`` float32.

    nibabel at once, because MONAI's LoadImage imports every reader there is and warns about those it does not find; and
    all of the file at once, because nibabel stops at the last voxel, before gzip would compare the checksum.

    Raises:
        UserError: it is damaged.
    """
    try:
        whole = gzip.decompress(Path(path).read_bytes())
        return np.asarray(nib.nifti1.Nifti1Image.from_bytes(whole).dataobj, np.float32)
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it and run the same command again, or first the one that made it"
        ) from error


def spacing_of(path: str | Path) -> np.ndarray:
    """Voxel size in mm along each axis of a NIfTI file of this program: ``(3,)``."""
    return np.asarray(nib.nifti1.Nifti1Image.from_filename(path).header.get_zooms()[:3], float)


def save_volume(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume as a NIfTI file that is whole or not there."""
    with written_whole(path) as beside:
        nib.save(nib.nifti1.Nifti1Image(data, affine), beside)
