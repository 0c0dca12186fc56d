"""What the report's viewer shows: volumes of some scans, in 8 bits, inside the page; a thumbnail of every scan."""

import base64
import gzip
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.report.figures import RESIDUAL_COLOURS, RESIDUAL_LIMIT
from anomaly3d.scans.nifti import spacing_of, voxels
from anomaly3d.scans.volume import mark_sides, three_planes

SCANS = 100  # with volumes; the others have a thumbnail only
BUDGET = 24e6  # characters of all packed volumes
BITS = {"brain_mask": 1, "lesion_mask": 2, "mass_effect_mask": 4}  # of the third volume; lesions as outlines
SMOOTHED = 3  # voxels a side: a finding is more than a voxel


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


@dataclass(frozen=True)
class Shown:
    """A scan of the page: its row of the prepared manifest, and the file of its reconstruction, None for none."""

    row: dict[Any, Any]
    reconstruction: Path | None

    def volumes(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and reconstruction ``(X, Y, Z)`` in [-1, 1]; without a reconstruction the image stands in."""
        image = voxels(self.row["image"])
        return image, image if self.reconstruction is None else voxels(self.reconstruction)

    def mask(self, column: str) -> np.ndarray:
        """True where the mask of a column is; a single False where the scan has none."""
        return voxels(self.row[column]) > 0 if self.row[column] else np.zeros(1, bool)


def pack(scan: Shown) -> dict[str, Any]:
    """A scan for the page: shape, affine, where to look first, and base64 of the gzipped bytes of input, reconstruction
    and mask bits.

    Voxels are in NIfTI's order, first axis fastest.
    """
    header = nib.nifti1.Nifti1Image.from_filename(scan.row["image"])
    bits = np.zeros(header.shape, np.uint8)
    masks = {column: scan.mask(column) for column in BITS}
    for column, bit in BITS.items():
        mask = masks[column]
        drawn = ndimage.binary_dilation(mask) & ~mask if column == "lesion_mask" and mask.any() else mask
        bits |= drawn * np.uint8(bit)
    image, reconstruction = scan.volumes()
    data = b"".join(v.tobytes(order="F") for v in (eight_bits(image), eight_bits(reconstruction), bits))
    return {
        "shape": list(header.shape),
        "finding": finding(image - reconstruction, masks["brain_mask"], masks["lesion_mask"]),
        "affine": np.round(header.affine[:3], 4).tolist(),
        "data": base64.b64encode(gzip.compress(data, 9, mtime=0)).decode(),
    }


def finding(residual: np.ndarray, brain: np.ndarray, lesion: np.ndarray) -> list[int]:
    """The voxel to look at first: where the residual ``(X, Y, Z)`` is largest, in the lesion where one is known."""
    large = ndimage.uniform_filter(np.abs(residual) * brain, SMOOTHED)
    inside = large * lesion if lesion.any() else large
    return [int(i) for i in np.unravel_index((inside if inside.any() else large).argmax(), large.shape)]


def thumbnail(scan: Shown) -> str:
    """Base64 of a PNG: the axial slice with the largest residual, input beside signed residual."""
    image, reconstruction = scan.volumes()
    residual = (image - reconstruction) * scan.mask("brain_mask")
    centre, spacing = (0, 0, int((residual**2).sum((0, 1)).argmax())), spacing_of(scan.row["image"])
    grey, share = (
        three_planes(v, spacing, centre)[0] for v in ((image + 1) / 2, (residual / RESIDUAL_LIMIT).clip(-1, 1))
    )
    colour = RESIDUAL_COLOURS((share + 1) / 2)[..., :3]
    buffer = io.BytesIO()
    both = np.concatenate([mark_sides(np.repeat(grey[..., None], 3, 2), 1.0), mark_sides(colour, 0.0)], 1)
    matplotlib.image.imsave(buffer, both.clip(0, 1), format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def pictures(
    table: pd.DataFrame, flagged: pd.Series, scans: dict[str, Shown]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Thumbnails of all scans, and packed volumes of those worth a look, by ``scan_id``.

    Args:
        table: test scans with ``scan_id, label, total``.
        flagged: by the locked threshold, in the same order.
    """
    thumbnails = {scan_id: thumbnail(scans[scan_id]) for scan_id in table["scan_id"]}
    packed: dict[str, dict[str, Any]] = {}
    size = 0
    for scan_id in pick(table, flagged):
        made = pack(scans[scan_id])
        size += len(made["data"])
        if size > BUDGET:
            break
        packed[scan_id] = made
    return thumbnails, packed
