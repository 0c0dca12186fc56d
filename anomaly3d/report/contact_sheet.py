"""One page of a prepared cohort: three planes of each scan with its mask's outline, verdict and numbers, sortable."""

import base64
import io
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from PIL import Image

from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.cohort import TEXT, PreparedCohort
from anomaly3d.scans.nifti import spacing_of, voxels
from anomaly3d.scans.volume import outlined
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import track

QUALITY = 75  # of WebP: noise of a scan is smoothed, outlines stay
EFFORT = 2  # of 6: half the time of the usual 4, for files a twentieth larger


def as_text(value: float) -> str:
    """A number as short as it goes, ``36`` for ``36.0``; empty where there is none."""
    return "" if pd.isna(value) else f"{value:g}"


def picture(folder: Path, scan_id: str) -> str:
    """The preview of a prepared scan as WebP in base64, a quarter of its PNG; where its preprocessor makes none, the
    prepared volume."""
    preview = folder / "preview" / f"{scan_id}.png"
    if preview.exists():
        shown: Image.Image = Image.open(preview)
    else:
        image, mask = (folder / kind / f"{scan_id}.nii.gz" for kind in ("image", "brain_mask"))
        shown = Image.fromarray(outlined((voxels(image) + 1) / 2, voxels(mask) > 0, spacing_of(image)))
    file = io.BytesIO()
    shown.save(file, format="webp", quality=QUALITY, method=EFFORT)
    return base64.b64encode(file.getvalue()).decode()


def in_limits(pair: tuple[float | None, float | None]) -> str:
    """Limits in words, empty for none."""
    low, high = pair
    if low is None:
        return "" if high is None else f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def write_contact_sheet(prepared: PreparedCohort, preprocessor: Preprocessor) -> Path:
    """Write ``quality.html`` beside ``quality.csv`` of a cohort, what was set aside first; return its path."""
    folder, scans = prepared.folder, []
    numbers = [str(column) for column in prepared.quality if column not in TEXT]
    order = {"rejected": 0, "unreadable": 1, "accepted": 2}
    rows = sorted(prepared.quality.to_dict("records"), key=lambda row: order[row["verdict"]])
    for row in track(rows, len(rows), "contact sheet"):
        image = folder / "image" / f"{row['scan_id']}.nii.gz"
        there = row["verdict"] != "unreadable" and image.exists()
        scans.append(
            {
                "scan_id": row["scan_id"],
                "verdict": row["verdict"],
                "reasons": row["reasons"],
                "about": " · ".join(filter(None, (row["split"], row["group"], row["lesions"].replace(";", ", ")))),
                "read_as": row["read_as"],
                "numbers": [as_text(row[name]) for name in numbers],
                "out": [not preprocessor.passes(name, row[name]) for name in numbers],
                "picture": picture(folder, row["scan_id"]) if there else None,
            }
        )
    environment = Environment(loader=PackageLoader("anomaly3d.report"), autoescape=select_autoescape())
    page = environment.get_template("contact_sheet.html").render(
        name=folder.parent.name,
        counts=[f"{n} {verdict}" for verdict, n in prepared.quality["verdict"].value_counts().items()],
        scans=scans,
        numbers=numbers,
        limits=[in_limits(preprocessor.quality.get(name, (None, None))) for name in numbers],
    )
    with written_whole(folder / "quality.html") as path:
        path.write_text(page, "utf-8")
    return folder / "quality.html"
