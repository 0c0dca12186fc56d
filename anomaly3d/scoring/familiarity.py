"""Is a scan like those that the detector learned from? If not, its score tells of the scanner, not of the head.

Quality control asks whether a scan is usable at all; this asks whether this detector has seen its like. It judges what
goes in, never the score: a bleed must not be a reason to doubt that a scan was understood.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import edt
import nibabel as nib
import numpy as np
import pandas as pd

from anomaly3d.errors import UserError
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.scans.nifti import voxels
from anomaly3d.system.files import written_whole
from anomaly3d.system.workers import Workers, run_in_threads

UNLIKE = "unlike_training"  # the column that says in what a scan differs from all that the detector was trained with
INPUTS = "inputs.json"  # beside the calibrations
POSITION = ("coverage", "turn_deg", "air_hu", "bias", "slices")  # quality numbers that no detector sees
LAYERS = (("rim", 0.0, 4.0), ("below_rim", 4.0, 10.0), ("deep", 10.0, np.inf))  # mm inside the prepared brain
CENTRAL = (0.01, 0.99)  # quantiles of the training scans
WIDER = 0.5  # of their distance is allowed beyond them
FEWEST = 8  # training scans that say what is usual


def layer_values(scan_id: str, image: str, brain_mask: str) -> dict[str, object]:
    """Median of a prepared scan's values, in [-1, 1], in each of ``LAYERS``."""
    x, inside = voxels(image), voxels(brain_mask) > 0
    spacing = np.linalg.norm(nib.nifti1.Nifti1Image.from_filename(image).affine[:3, :3], axis=0)
    depth = edt.edt(inside, anisotropy=tuple(map(float, spacing)), parallel=1)
    medians = {n: np.median(x[m]) if (m := inside & (depth > a) & (depth <= b)).any() else np.nan for n, a, b in LAYERS}
    return {"scan_id": scan_id, **{name: float(value) for name, value in medians.items()}}


def input_statistics(
    rows: pd.DataFrame, quality: pd.DataFrame, numbers: Iterable[str], workers: Workers
) -> pd.DataFrame:
    """What describes prepared scans as input, a row each with ``scan_id``: quality numbers and ``layer_values``.

    Args:
        rows: of the manifest of prepared scans.
        quality: ``PreparedCohort.quality``; ``numbers``: which of its columns were measured on the scan.
    """
    jobs = [(r["scan_id"], r["image"], r["brain_mask"]) for r in rows.to_dict("records")]
    layers = pd.DataFrame(run_in_threads(layer_values, jobs, workers, "what scans are like"))
    seen = [name for name in numbers if name not in POSITION]
    return rows[["scan_id"]].merge(layers, on="scan_id").merge(quality[["scan_id", *seen]], on="scan_id")


@dataclass(frozen=True)
class Familiar:
    """The usual range of each input statistic among training scans; values of ``LAYERS`` are in [-1, 1]."""

    ranges: dict[str, tuple[float, float]]

    @classmethod
    def measure(cls, statistics: pd.DataFrame) -> "Familiar":
        """From ``input_statistics`` of the training scans; of too few, nothing is known."""
        values = statistics.drop(columns="scan_id")
        if len(values) < FEWEST:
            return cls({})
        ranges = {}
        for name in map(str, values):
            low, high = (float(values[name].quantile(q)) for q in CENTRAL)
            margin = WIDER * (high - low)
            if margin > 0:
                ranges[name] = (low - margin, high + margin)
        return cls(ranges)

    def unlike(self, statistics: pd.Series, preprocessor: Preprocessor) -> str:
        """In what a scan differs from all that was trained on, as text; empty where it does not."""
        found = []
        for name, (low, high) in self.ranges.items():
            value = float(statistics.get(name, np.nan))
            if low <= value <= high or np.isnan(value):
                continue
            shown = [value, low, high]
            if name in {layer for layer, *_ in LAYERS}:
                shown = preprocessor.to_physical(np.array(shown)).tolist()
            found.append("{} {:.4g} (trained with {:.4g} to {:.4g})".format(name, *shown))
        return "; ".join(found)

    def told(
        self, rows: pd.DataFrame, quality: pd.DataFrame, preprocessor: Preprocessor, workers: Workers
    ) -> dict[str, str]:
        """The same of prepared scans, see ``input_statistics``, by ``scan_id``; empty where nothing is known."""
        if not self.ranges or rows.empty:
            return {}
        statistics = input_statistics(rows, quality, preprocessor.reasons, workers).set_index("scan_id")
        return {str(scan_id): self.unlike(row, preprocessor) for scan_id, row in statistics.iterrows()}

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        with written_whole(path) as beside:
            beside.write_text(json.dumps(self.ranges, indent=1))

    @classmethod
    def load(cls, path: Path) -> "Familiar":
        """Read what ``save`` wrote; nothing is known where there is no file.

        Raises:
            UserError: it is damaged.
        """
        try:
            return cls(json.loads(path.read_text()) if path.exists() else {})
        except ValueError as error:
            raise UserError(f"{path} is damaged: run 'python -m anomaly3d.evaluate' again") from error
