"""From the small MNI grid back to the scan's own: maps that lie on the scan in any viewer."""

from dataclasses import dataclass

import nibabel as nib
import numpy as np

from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.scans.volume import Volume, resample


def on_own_grid(
    original: nib.nifti1.Nifti1Image, volume: Volume, mni_to_scan: np.ndarray, fill: float, dtype: type[np.generic]
) -> nib.nifti1.Nifti1Image:
    """A prepared volume on the grid of its scan.

    Args:
        fill: value outside of the volume.
        dtype: int16 rounds, uint8 makes a mask of 0 and 1.
    """
    back = resample(volume, original.affine, original.shape[:3], np.linalg.inv(mni_to_scan), fill)
    if dtype is np.uint8:
        back = back > 0.5
    elif dtype is np.int16:
        back = np.rint(back)
    return nib.nifti1.Nifti1Image(back.astype(dtype), original.affine, bare_header(original, dtype))


def bare_header(original: nib.nifti1.Nifti1Image, dtype: type[np.generic]) -> nib.nifti1.Nifti1Header:
    """A scan's header with its place in the world, but without its texts, which may name a person, and its window."""
    header = original.header.copy()
    header.set_data_dtype(dtype)
    header.set_intent("none")
    header.set_xyzt_units("mm")
    for key in ("descrip", "db_name", "aux_file"):
        header[key] = b""
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    return header


@dataclass(frozen=True)
class Found:
    """A prepared scan and what a detector makes of it, all on the grid of ``affine``."""

    image: np.ndarray
    brain: np.ndarray
    reconstruction: np.ndarray | None
    maps: dict[str, np.ndarray]  # the detector's own, and standardised ones
    affine: np.ndarray
    mni_to_scan: np.ndarray


def own_grid_maps(
    original: nib.nifti1.Nifti1Image, found: Found, preprocessor: Preprocessor
) -> dict[str, nib.nifti1.Nifti1Image]:
    """``input``, ``reconstruction`` and the signed ``residual`` in the preprocessor's unit, ``brain_mask``, own maps.

    Outside of the prepared volume input and reconstruction have the lowest value there is, the others 0; ``residual``
    is 0 outside of the brain mask too, where a score's distances may look but a reader should not.
    """
    lowest, stored = float(preprocessor.to_physical(np.array(-1.0))), preprocessor.stored
    volumes: dict[str, tuple[np.ndarray, float, type[np.generic]]] = {
        "input": (preprocessor.to_physical(found.image), lowest, stored)
    }
    if found.reconstruction is not None:
        residual = (found.image - found.reconstruction) * preprocessor.per_unit
        volumes["reconstruction"] = (preprocessor.to_physical(found.reconstruction), lowest, stored)
        volumes["residual"] = (residual, 0.0, stored)
    volumes["brain_mask"] = (found.brain.astype(np.float32), 0.0, np.uint8)
    volumes |= {name: (data, 0.0, np.float32) for name, data in found.maps.items()}
    made = {
        name: on_own_grid(original, Volume(data, found.affine), found.mni_to_scan, fill, dtype)
        for name, (data, fill, dtype) in volumes.items()
    }
    if "residual" in made:
        inside = np.asarray(made["residual"].dataobj) * np.asarray(made["brain_mask"].dataobj).astype(stored)
        made["residual"] = nib.nifti1.Nifti1Image(inside, original.affine, made["residual"].header)
    return made
