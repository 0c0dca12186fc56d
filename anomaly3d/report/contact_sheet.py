"""One page of a prepared cohort: three planes of each scan with its mask's outline, verdict and numbers, sortable."""

import base64
import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from scipy import ndimage

from anomaly3d.preprocessing.cohort import TEXT, PreparedCohort
from anomaly3d.scans.nifti import spacing_of, voxels
from anomaly3d.scans.volume import mark_sides, three_planes
from anomaly3d.system.files import written_whole

OUTLINE = (0.84, 0.37, 0.0)  # vermilion of Okabe and Ito


def as_text(value: float) -> str:
    """A number as short as it goes, ``36`` for ``36.0``; empty where there is none."""
    return "" if pd.isna(value) else f"{value:g}"


def thumbnail(image: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> str:
    """Axial, coronal and sagittal planes through the mask's centre as a PNG in base64, the mask outlined.

    Args:
        image: ``(X, Y, Z)`` in [-1, 1]; ``mask``: the same shape, 0 or 1; ``spacing`` of their voxels in mm.
    """
    x, y, z = np.argwhere(mask > 0).mean(0).astype(int).tolist() if mask.any() else [n // 2 for n in image.shape]
    tiles: list[np.ndarray] = []
    centre = (x, y, z)
    planes = (three_planes(image, spacing, centre), three_planes(mask > 0, spacing, centre))
    height = max(len(plane) for plane in planes[0])
    for plane, inside in zip(*planes, strict=True):
        colour = np.repeat(((plane.clip(-1, 1) + 1) / 2)[..., None], 3, axis=2)
        colour[ndimage.binary_dilation(inside) & ~inside] = OUTLINE
        colour = mark_sides(colour, 1.0) if len(tiles) < 2 else colour  # the third plane shows front and back
        tiles.append(np.pad(colour, ((height - len(colour), 0), (0, 0), (0, 0))))
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.concatenate(tiles, 1), format="png")
    return base64.b64encode(file.getvalue()).decode()


def write_contact_sheet(prepared: PreparedCohort) -> Path:
    """Write ``quality.html`` beside ``quality.csv`` of a prepared cohort and return its path."""
    folder, scans = prepared.folder, []
    numbers = [str(column) for column in prepared.quality if column not in TEXT]
    for row in prepared.quality.to_dict("records"):
        image = folder / "image" / f"{row['scan_id']}.nii.gz"
        there = row["verdict"] != "unreadable" and image.exists()
        scans.append(
            {
                "scan_id": row["scan_id"],
                "verdict": row["verdict"],
                "reasons": row["reasons"],
                "numbers": [as_text(row[name]) for name in numbers],
                "picture": thumbnail(voxels(image), voxels(folder / "brain_mask" / image.name), spacing_of(image))
                if there
                else None,
            }
        )
    environment = Environment(loader=PackageLoader("anomaly3d.report"), autoescape=select_autoescape())
    page = environment.get_template("contact_sheet.html").render(scans=scans, numbers=numbers)
    with written_whole(folder / "quality.html") as path:
        path.write_text(page)
    return folder / "quality.html"
