"""From a scan's findings to anomaly maps, and what is usual in them in healthy scans.

A raw map is ``(D, H, W)`` and signed: the residual r = x - reconstruction in units of [-1, 1], or a map of the
detector's own. All work inside the brain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.scans.nifti import voxels
from anomaly3d.system.files import written_whole

RECONSTRUCTION, MAPS = "reconstruction", "maps"  # folders of a detector's volumes
RESIDUAL = "residual"
SMOOTHING = 1.0  # voxels, sigma
SPREAD_SMOOTHING = 2.0  # voxels, sigma, of the healthy spread
FLOOR = 0.02  # of the healthy spread: 1.2 HU


@dataclass(frozen=True)
class ScanMaps:
    """Files of a scan from which its raw maps are made; ``reconstruction`` is empty where there is none."""

    scan_id: str
    image: str
    reconstruction: str
    brain_mask: str
    own: dict[str, str] = field(default_factory=dict)  # files of the detector's own maps by name

    def read(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Raw maps by name, and brain mask."""
        raw = {RESIDUAL: voxels(self.image) - voxels(self.reconstruction)} if self.reconstruction else {}
        return raw | {name: voxels(path) for name, path in self.own.items()}, voxels(self.brain_mask) > 0


def maps_of(rows: pd.DataFrame, folder: Path) -> list[ScanMaps]:
    """The files of prepared scans whose findings lie in ``folder``; none where the detector has neither kind of map."""
    own = sorted(path.name for path in (folder / MAPS).glob("*"))
    reconstructs = (folder / RECONSTRUCTION).is_dir()
    if not own and not reconstructs:
        return []
    return [
        ScanMaps(
            row["scan_id"],
            row["image"],
            str(folder / RECONSTRUCTION / f"{row['scan_id']}.nii.gz") if reconstructs else "",
            row["brain_mask"],
            {name: str(folder / MAPS / name / f"{row['scan_id']}.nii.gz") for name in own},
        )
        for row in rows.to_dict("records")
    ]


@dataclass(frozen=True)
class Healthy:
    """What is usual in healthy training scans.

    ``mean`` and ``spread`` of each raw map at each voxel ``(D, H, W)``; ``medians`` of the parts of the score.
    """

    mean: dict[str, np.ndarray]
    spread: dict[str, np.ndarray]
    medians: dict[str, float]

    @classmethod
    def measure(cls, maps: Iterable[ScanMaps], table: pd.DataFrame, parts: Sequence[str]) -> "Healthy":
        """From the maps and scores of the training scans; smoothed, because they are few."""
        count = 0
        total: dict[str, np.ndarray] = {}
        square: dict[str, np.ndarray] = {}
        for scan in maps:
            count += 1
            for name, raw in scan.read()[0].items():
                values = raw.astype(np.float64)
                total[name] = total.get(name, 0) + values
                square[name] = square.get(name, 0) + values**2
        means = {name: t / count for name, t in total.items()}
        variances = {name: (square[name] / count - m**2).clip(min=0) for name, m in means.items()}
        spreads = {n: np.sqrt(ndimage.gaussian_filter(v, SPREAD_SMOOTHING)) for n, v in variances.items()}
        return cls(
            {n: ndimage.gaussian_filter(m, SPREAD_SMOOTHING).astype(np.float32) for n, m in means.items()},
            {n: np.maximum(s, FLOOR).astype(np.float32) for n, s in spreads.items()},
            {part: float(table[part].median()) for part in parts},
        )

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        arrays = {f"mean/{n}": m for n, m in self.mean.items()} | {f"spread/{n}": s for n, s in self.spread.items()}
        arrays |= {f"median/{n}": np.array(m) for n, m in self.medians.items()}
        with written_whole(path) as beside:
            np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Healthy":
        """Read what ``save`` wrote."""
        with np.load(path) as stored:

            def under(kind: str) -> dict[str, np.ndarray]:
                return {n.removeprefix(f"{kind}/"): stored[n] for n in stored if n.startswith(f"{kind}/")}

            return cls(under("mean"), under("spread"), {n: float(m) for n, m in under("median").items()})


def smooth(raw: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Gaussian mean of a map over the brain's voxels only, zero outside."""
    weight = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTHING)
    return ndimage.gaussian_filter(raw * brain, SMOOTHING) / np.maximum(weight, 1e-3) * brain


def standardised_name(raw: str) -> str:
    """What the standardised map of a raw one is called."""
    return "standardised" if raw == RESIDUAL else f"{raw}_standardised"


def anomaly_maps(raw: dict[str, np.ndarray], brain: np.ndarray, healthy: Healthy) -> dict[str, np.ndarray]:
    """Signed maps ``(D, H, W)``: each raw one smoothed, and the same in units of the healthy spread at each voxel."""
    found = {}
    for name, values in raw.items():
        found[name] = smooth(values, brain)
        found[standardised_name(name)] = smooth((values - healthy.mean[name]) / healthy.spread[name], brain)
    return found
