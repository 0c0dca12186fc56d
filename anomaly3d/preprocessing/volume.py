"""Reading a scan, and moving a volume from one grid to another."""

import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from anomaly3d.errors import UnreadableScan

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


def load_nifti(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI image whose data have been read.

    Raises:
        UnreadableScan: with the reason.
    """
    try:
        image = nib.load(path)
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


def read_dicom(folder: Path) -> nib.nifti1.Nifti1Image:
    """The largest series of a folder of DICOM slices as one image, when its slices are evenly spaced and not tilted.

    Raises:
        UnreadableScan: no series, or a geometry that one affine cannot hold.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    series = [reader.GetGDCMSeriesFileNames(str(folder), uid) for uid in reader.GetGDCMSeriesIDs(str(folder))]
    if not series:
        raise UnreadableScan("a folder without a DICOM series")
    files = max(series, key=len)
    geometry = sitk.ImageFileReader()
    corners = []
    for file in files:
        geometry.SetFileName(file)
        try:
            geometry.ReadImageInformation()
        except RuntimeError as error:
            raise UnreadableScan(f"DICOM slice {Path(file).name} is damaged") from error
        corners.append(geometry.GetOrigin())
    axes = np.array(geometry.GetDirection()).reshape(3, 3)
    steps = np.diff(np.array(corners), axis=0)
    heights = steps @ axes[:, 2]
    if len(steps) and np.ptp(heights) > 0.05 * abs(np.median(heights)):
        raise UnreadableScan(
            f"slices are unevenly spaced ({abs(heights).min():.1f} to {abs(heights).max():.1f} mm): convert the "
            "series to NIfTI with dcm2niix, which resamples it, and give that file"
        )
    if len(steps) and np.linalg.norm(steps - np.outer(heights, axes[:, 2])) > 0.1 * np.abs(heights).sum():
        raise UnreadableScan("gantry tilt: convert with dcm2niix, which straightens it, and give that file")
    reader.SetFileNames(files)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise UnreadableScan("the DICOM slices do not fit together, or one is damaged") from error
    flip = np.diag([-1, -1, 1, 1.0])  # LPS to RAS
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return nib.Nifti1Image(sitk.GetArrayFromImage(image).T.astype(np.float32), flip @ affine)


def read_scan(path: Path) -> Volume:
    """A head CT (NIfTI file or DICOM folder) in HU, clipped to [-1024, 3071], axes nearest to right-anterior-superior.

    Raises:
        UnreadableScan: not an image, damaged, not 3D, not finite, or not in HU.
    """
    image = read_dicom(path) if path.is_dir() else load_nifti(path)
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
