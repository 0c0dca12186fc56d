"""What the report's viewer shows: volumes of some scans, in 8 bits, inside the page; a thumbnail of every scan."""

import base64
import gzip
import io
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd

from anomaly3d.evaluation.figures import RESIDUAL_LIMIT
from anomaly3d.evaluation.rescoring import load

SCANS = 100  # with volumes; the others have a thumbnail only
BUDGET = 24e6  # characters of all packed volumes
BRAIN, LESION, DISPLACED = 1, 2, 4  # bits of the third volume


def pick(table: pd.DataFrame, flagged: pd.Series, count: int = SCANS) -> list[str]:
    """Scans worth a look, at most ``count``: in turn misses, false alarms, the highest scores, and others at random."""
    ill, well = table["label"] == "1", table["label"] == "0"
    ordered = table.sort_values("total", ascending=False)
    rng = np.random.default_rng(0)
    queues = [
        ordered[(ill & ~flagged)[ordered.index]]["scan_id"].tolist(),
        ordered[(well & flagged)[ordered.index]]["scan_id"].tolist(),
        ordered["scan_id"].tolist(),
        rng.permutation(table["scan_id"].to_numpy()).tolist(),
    ]
    chosen: dict[str, None] = {}
    for place in range(len(table)):
        for queue in queues:
            if place < len(queue) and len(chosen) < count:
                chosen[queue[place]] = None
    return list(chosen)


def eight_bits(volume: np.ndarray) -> np.ndarray:
    """[-1, 1] as 0 to 255."""
    return np.rint((volume.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def pack(scan: dict[str, Any], reconstruction: Path) -> dict[str, Any]:
    """A scan for the page: shape, affine, and base64 of the gzipped bytes of input, reconstruction and mask bits.

    Voxels are in NIfTI's order, first axis fastest.
    """
    image = nib.nifti1.Nifti1Image.from_filename(scan["image"])
    bits = (load(scan["brain_mask"]) > 0) * np.uint8(BRAIN)
    for column, bit in (("lesion_mask", LESION), ("mass_effect_mask", DISPLACED)):
        if scan[column]:
            bits |= (load(scan[column]) > 0) * np.uint8(bit)
    volumes = (eight_bits(load(scan["image"])), eight_bits(load(reconstruction)), bits.astype(np.uint8))
    data = b"".join(v.tobytes(order="F") for v in volumes)
    return {
        "shape": list(image.shape),
        "affine": np.round(image.affine[:3], 4).tolist(),
        "data": base64.b64encode(gzip.compress(data, 9, mtime=0)).decode(),
    }


def thumbnail(scan: dict[str, Any], reconstruction: Path) -> str:
    """Base64 of a PNG: the axial slice with the largest residual, input beside signed residual, forehead up."""
    image = load(scan["image"])
    residual = (image - load(reconstruction)) * (load(scan["brain_mask"]) > 0)
    z = int((residual**2).sum((0, 1)).argmax())
    grey = np.repeat((image[:, :, z, None] + 1) / 2, 3, 2)
    share = (residual[:, :, z] / RESIDUAL_LIMIT).clip(-1, 1)
    red, blue = np.array([0.80, 0.14, 0.10]), np.array([0.10, 0.35, 0.80])
    colour = np.where(share[..., None] > 0, red, blue)
    both = np.concatenate([grey[::-1], 1 - np.abs(share[::-1, :, None]) * (1 - colour[::-1])], 0)
    buffer = io.BytesIO()
    matplotlib.image.imsave(buffer, np.flipud(both.transpose(1, 0, 2)).clip(0, 1), format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def pictures(
    table: pd.DataFrame, flagged: pd.Series, rows: pd.DataFrame, folder: Path
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Thumbnails of all scans, and packed volumes of those worth a look, by ``scan_id``.

    Args:
        table: test scans with ``scan_id, label, total``.
        flagged: by the locked threshold, in the same order.
        rows: their files, by ``scan_id``.
        folder: holds ``reconstruction/ID.nii.gz``.
    """

    def files(scan_id: str) -> tuple[dict[str, Any], Path]:
        row: dict[str, Any] = {str(k): v for k, v in rows.loc[scan_id].to_dict().items()}
        return row, folder / "reconstruction" / f"{scan_id}.nii.gz"

    thumbnails = {scan_id: thumbnail(*files(scan_id)) for scan_id in table["scan_id"]}
    packed: dict[str, dict[str, Any]] = {}
    size = 0
    for scan_id in pick(table, flagged):
        made = pack(*files(scan_id))
        size += len(made["data"])
        if size > BUDGET:
            break
        packed[scan_id] = made
    return thumbnails, packed
