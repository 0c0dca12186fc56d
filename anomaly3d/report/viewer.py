"""What the report's viewer shows: volumes of some scans, in 8 bits, inside the page; a thumbnail of every scan."""

import base64
import gzip
import io
from dataclasses import dataclass
from typing import Any

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.report.figures import RESIDUAL_COLOURS
from anomaly3d.scans.nifti import spacing_of, voxels
from anomaly3d.scans.volume import mark_sides, three_planes
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps, standardised_maps

SCANS = 100  # with volumes; the others have a thumbnail only
BUDGET = 24e6  # characters of all packed volumes
BITS = {"brain_mask": 1, "lesion_mask": 2, "mass_effect_mask": 4}  # of the third volume; lesions as outlines
DEVIATION_LIMIT = 8.0  # of the standardised map's colour scale and of its bytes


def pick(table: pd.DataFrame, score: str, flagged: pd.Series, count: int = SCANS) -> list[str]:
    """Scans worth a look, at most ``count``: in turn misses, false alarms, the highest scores, and others at random."""
    ill, well = table["label"] == "1", table["label"] == "0"
    ordered = table.sort_values(score, ascending=False)
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


def signed_bytes(deviation: np.ndarray) -> np.ndarray:
    """Within ``DEVIATION_LIMIT`` as 1 to 255; 0 as 128 exactly."""
    return (np.rint(deviation.clip(-DEVIATION_LIMIT, DEVIATION_LIMIT) * 127 / DEVIATION_LIMIT) + 128).astype(np.uint8)


@dataclass(frozen=True)
class Shown:
    """A scan of the page: its row of the prepared manifest, the files of its maps and what is usual; None for none."""

    row: dict[Any, Any]
    files: ScanMaps | None
    healthy: Healthy | None

    def volumes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Image and reconstruction ``(X, Y, Z)`` in [-1, 1], and the standardised map of the residual, else of a map of
        the detector's own; what does not exist is the image again, or 0."""
        image = voxels(self.row["image"])
        if self.files is None:
            return image, image, np.zeros_like(image)
        reconstruction = voxels(self.files.reconstruction) if self.files.reconstruction else image
        if self.healthy is None:
            return image, reconstruction, np.zeros_like(image)
        return image, reconstruction, next(iter(standardised_maps(self.files.read(), self.healthy).values()))

    @property
    def layers(self) -> list[str]:
        """Which of the maps of ``volumes`` there are, and the residual of a reconstruction."""
        reconstructed = self.files is not None and bool(self.files.reconstruction)
        return [
            *(["reconstruction", "residual"] if reconstructed else []),
            *(["standardised"] if self.files is not None and self.healthy is not None else []),
        ]

    def mask(self, column: str) -> np.ndarray:
        """True where the mask of a column is; a single False where the scan has none."""
        return voxels(self.row[column]) > 0 if self.row[column] else np.zeros(1, bool)


def pack(scan: Shown) -> dict[str, Any]:
    """A scan for the page: shape, affine, where to look first, its ``layers``, and base64 of the gzipped bytes of
    input, reconstruction, standardised map and mask bits.

    Voxels are in NIfTI's order, first axis fastest.
    """
    header = nib.nifti1.Nifti1Image.from_filename(scan.row["image"])
    bits = np.zeros(header.shape, np.uint8)
    masks = {column: scan.mask(column) for column in BITS}
    for column, bit in BITS.items():
        mask = masks[column]
        drawn = ndimage.binary_dilation(mask) & ~mask if column == "lesion_mask" and mask.any() else mask
        bits |= drawn * np.uint8(bit)
    image, reconstruction, deviation = scan.volumes()
    packed = (*map(eight_bits, (image, reconstruction)), signed_bytes(deviation), bits)
    data = b"".join(volume.tobytes(order="F") for volume in packed)
    return {
        "shape": list(header.shape),
        "finding": finding(deviation, masks["lesion_mask"]),
        "layers": scan.layers,
        "affine": np.round(header.affine[:3], 4).tolist(),
        "data": base64.b64encode(gzip.compress(data, 9, mtime=0)).decode(),
    }


def finding(deviation: np.ndarray, lesion: np.ndarray) -> list[int]:
    """The voxel to look at first: where the map ``(X, Y, Z)`` is farthest from 0, in the lesion where one is known; of
    an empty map deepest in the lesion, else the middle."""
    large = np.abs(deviation)
    if not large.any() and lesion.any():
        large = ndimage.distance_transform_edt(lesion)
    if not large.any():
        return [n // 2 for n in large.shape]
    inside = large * lesion if lesion.any() else large
    return [int(i) for i in np.unravel_index((inside if inside.any() else large).argmax(), large.shape)]


def thumbnail(scan: Shown) -> str:
    """Base64 of a PNG: the axial slice with the largest deviation, input beside the signed standardised map if any."""
    image, _, deviation = scan.volumes()
    squares, spacing = (deviation**2).sum((0, 1)), spacing_of(scan.row["image"])
    centre = (0, 0, int(squares.argmax()) if squares.any() else len(squares) // 2)
    grey, share = (
        three_planes(v, spacing, centre)[0] for v in ((image + 1) / 2, (deviation / DEVIATION_LIMIT).clip(-1, 1))
    )
    colour = RESIDUAL_COLOURS((share + 1) / 2)[..., :3]
    buffer = io.BytesIO()
    halves = [mark_sides(np.repeat(grey[..., None], 3, 2), 1.0)]
    halves += [mark_sides(colour, 0.0)] if "standardised" in scan.layers else []
    matplotlib.image.imsave(buffer, np.concatenate(halves, 1).clip(0, 1), format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def pictures(
    table: pd.DataFrame, score: str, flagged: pd.Series | None, scans: dict[str, Shown]
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Thumbnails of all scans, and packed volumes of those worth a look, by ``scan_id``.

    Args:
        table: test scans with ``scan_id, label`` and ``score``, by which they are ranked.
        flagged: by the locked threshold, in the same order; None where there is none.
    """
    thumbnails = {scan_id: thumbnail(scans[scan_id]) for scan_id in table["scan_id"]}
    packed: dict[str, dict[str, Any]] = {}
    size = 0
    for scan_id in pick(table, score, flagged if flagged is not None else pd.Series(False, index=table.index)):
        made = pack(scans[scan_id])
        size += len(made["data"])
        if size > BUDGET:
            break
        packed[scan_id] = made
    return thumbnails, packed
