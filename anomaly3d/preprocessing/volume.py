"""Reading a scan, and moving a volume from one grid to another."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from anomaly3d.cohorts.phantom.files import RECIPE_SUFFIX, read_recipe
from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing.dicom import read_dicom

HU_MIN, HU_MAX = -1024.0, 3071.0


@dataclass(frozen=True)
class Volume:
    """Voxels ``(X, Y, Z)`` float32 with the affine from voxel to world (RAS mm)."""

    data: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along each axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def ml(self) -> float:
        """Volume of a mask of 0 and 1."""
        return float(self.data.sum(dtype=np.float64) * abs(np.linalg.det(self.affine[:3, :3])) / 1000)


def load_nifti(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI image whose data have been read; the recipe of a phantom counts as one.

    Raises:
        UnreadableScan: with the reason.
    """
    try:
        image = read_recipe(path) if path.suffix == RECIPE_SUFFIX else nib.load(path)
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


def read_image(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI file or a DICOM folder as one image on its own grid.

    Raises:
        UnreadableScan: with the reason.
    """
    return read_dicom(path) if path.is_dir() else load_nifti(path)


def read_scan(path: Path) -> Volume:
    """A head CT (NIfTI file or DICOM folder) in HU, clipped to [-1024, 3071], axes nearest to right-anterior-superior.

    Raises:
        UnreadableScan: not an image, damaged, not 3D, not finite, or not in HU.
    """
    image = read_image(path)
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3 or min(image.shape) < 8:
        shape = " x ".join(map(str, image.shape))
        raise UnreadableScan(f"not a volume: its shape is {shape}, and a head CT has at least 8 slices")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise UnreadableScan("the affine in its header is singular")
    if image.get_data_dtype().names:
        raise UnreadableScan("a colour image, not a CT in HU")
    image = nib.as_closest_canonical(image)
    data = np.asarray(image.dataobj, dtype=np.float32)
    if not np.isfinite(data).all():
        raise UnreadableScan(f"{int((~np.isfinite(data)).sum())} voxels are NaN or infinite")
    if data.min() > -500 or data.max() < 300:
        raise UnreadableScan(
            f"not in HU: values reach from {data.min():.0f} to {data.max():.0f}, and a head CT has air near -1000 "
            "and bone above 300"
        )
    return Volume(np.clip(data, HU_MIN, HU_MAX), np.asarray(image.affine, float))


def resample(
    volume: Volume,
    affine: np.ndarray,
    shape: tuple[int, ...],
    to_volume: np.ndarray | None = None,
    fill: float = 0,
) -> np.ndarray:
    """``volume`` on another grid by linear interpolation.

    Args:
        affine, shape: the new grid, voxel to its world in mm.
        to_volume: affine from the new grid's world to the volume's world; identity if None.
        fill: value outside the volume.
    """
    chain = np.linalg.inv(volume.affine) @ (np.eye(4) if to_volume is None else to_volume) @ affine
    data = volume.data.astype(np.float32, copy=False)
    return ndimage.affine_transform(data, chain[:3, :3], chain[:3, 3], shape, order=1, cval=fill)
