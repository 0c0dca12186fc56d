"""Any file or folder that a manifest may name, as one image or as a volume."""

from pathlib import Path

import nibabel as nib
import numpy as np

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.dicom import read_dicom
from anomaly3d.scans.nifti import load_nifti
from anomaly3d.scans.volume import Volume

HU_MIN, HU_MAX = -1024.0, 3071.0


def read_image(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI file or a DICOM folder as one image on its own grid.

    Raises:
        UnreadableScan: with the reason.
    """
    return read_dicom(path) if path.is_dir() else load_nifti(path)


def read_scan(path: Path) -> Volume:
    """A scan (NIfTI file or DICOM folder), axes nearest to right-anterior-superior.

    Raises:
        UnreadableScan: not an image, damaged, not 3D, or not finite.
    """
    image = read_image(path)
    if len(image.shape) == 4 and image.shape[3] == 1:
        image = image.slicer[..., 0]
    if len(image.shape) != 3 or min(image.shape) < 8:
        shape = " x ".join(map(str, image.shape))
        raise UnreadableScan(f"not a volume: its shape is {shape}, and a head scan has at least 8 slices")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise UnreadableScan("the affine in its header is singular")
    if image.get_data_dtype().names:
        raise UnreadableScan("a colour image, not a scan of one number a voxel")
    image = nib.as_closest_canonical(image)
    data = np.asarray(image.dataobj, dtype=np.float32)
    if not np.isfinite(data).all():
        raise UnreadableScan(f"{int((~np.isfinite(data)).sum())} voxels are NaN or infinite")
    return Volume(data, np.asarray(image.affine, float))


def read_ct(path: Path) -> Volume:
    """A head CT in HU, clipped to [-1024, 3071].

    Raises:
        UnreadableScan: as ``read_scan``, or not in HU.
    """
    scan = read_scan(path)
    low, high = scan.data.min(), scan.data.max()
    if low > -500 or high < 300:
        raise UnreadableScan(
            f"not in HU: values reach from {low:.0f} to {high:.0f}, and a head CT has air near -1000 and bone above 300"
        )
    return Volume(np.clip(scan.data, HU_MIN, HU_MAX), scan.affine)
