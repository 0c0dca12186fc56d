"""One page of a prepared cohort: three planes of each scan with its mask's outline, verdict and numbers, sortable."""

import base64
import io
from dataclasses import fields
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from scipy import ndimage

from anomaly3d.files import written_whole
from anomaly3d.preprocessing.quality import Quality

NUMBERS = tuple(field.name for field in fields(Quality))
OUTLINE = (0.84, 0.37, 0.0)  # vermilion of Okabe and Ito


def as_text(value: object) -> str:
    """A number as short as it goes, ``36`` for ``36.0``; empty where there is none."""
    return f"{float(value):g}" if isinstance(value, int | float | str) and value != "" else ""


def voxels(path: Path) -> np.ndarray:
    """A NIfTI file's values."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj, np.float32)


def thumbnail(image: np.ndarray, mask: np.ndarray) -> str:
    """Axial, coronal and sagittal planes through the mask's centre as a PNG in base64, the mask outlined.

    Args:
        image: ``(X, Y, Z)`` in [-1, 1]; ``mask``: the same shape, 0 or 1.
    """
    centre = np.argwhere(mask > 0).mean(0).astype(int) if mask.any() else np.array(image.shape) // 2
    tiles = []
    for axis in (2, 1, 0):
        plane = np.flipud(np.take(image, centre[axis], axis).T)
        inside = np.flipud(np.take(mask, centre[axis], axis).T) > 0
        colour = np.repeat(((plane.clip(-1, 1) + 1) / 2)[..., None], 3, axis=2)
        colour[ndimage.binary_dilation(inside) & ~inside] = OUTLINE
        tiles.append(colour)
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.concatenate(tiles, 1), format="png")
    return base64.b64encode(file.getvalue()).decode()


def write_contact_sheet(folder: Path) -> Path:
    """Write ``quality.html`` beside ``quality.csv`` of a prepared cohort and return its path."""
    quality = pd.read_csv(folder / "quality.csv", keep_default_na=False)
    scans = []
    for row in quality.to_dict("records"):
        image = folder / "image" / f"{row['scan_id']}.nii.gz"
        scans.append(
            {
                "scan_id": row["scan_id"],
                "verdict": row["verdict"],
                "reasons": row["reasons"],
                "numbers": [as_text(row.get(name, "")) for name in NUMBERS],
                "picture": thumbnail(voxels(image), voxels(folder / "brain_mask" / image.name))
                if image.exists()
                else None,
            }
        )
    environment = Environment(loader=PackageLoader("anomaly3d.report"), autoescape=select_autoescape())
    page = environment.get_template("contact_sheet.html").render(scans=scans, numbers=NUMBERS)
    with written_whole(folder / "quality.html") as path:
        path.write_text(page)
    return folder / "quality.html"
