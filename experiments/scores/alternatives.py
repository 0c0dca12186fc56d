"""What else was tried between residual and scan score, on closed-form detectors: cross-fitted statistics, local tails,
combinations by conformal p-values.

``python -m experiments.scores.alternatives bench21 bench22 bench23`` prints AUC at sites A and B, mean over the runs,
and writes ``alternatives.json``.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from scipy.stats import norm

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.base import Detector, build_detector
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.anomaly_maps import POOLED, RESIDUAL, Healthy, RawMaps, anomaly_maps
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.scan_scores import map_scores, peak
from anomaly3d.system.progress import track
from experiments.scores.measure import HERE, options, ranks

DETECTORS = ("pca", "mean_volume")
FOLDS = 4
TAIL = 2.0  # healthy spreads beyond which a tail is an exponential of its own at each place
COMBINED = (("peak", "exceedance"), ("peak", "clustered"), ("peak", "standardised", "exceedance", "clustered", "tail"))

Maps = list[RawMaps]  # residual and brain mask of each scan


def residuals(detector: Detector, data: HeadCTDataModule, split: str, rows: np.ndarray) -> Maps:
    """Of some scans of a split."""
    images, brains = data.volumes(split), data.volumes(split, "brain_mask")
    found: Maps = []
    for part in np.array_split(rows, max(1, len(rows) // 16)):
        x = images[part]
        made = detector.examine({"image": x}).reconstruction  # type: ignore[typeddict-item]
        assert made is not None
        found += [
            RawMaps({RESIDUAL: r[0].numpy()}, b[0].numpy() > 0) for r, b in zip(x - made, brains[part], strict=True)
        ]
    return found


def usual(maps: Maps) -> Healthy:
    """Healthy statistics of maps."""
    found = Healthy(0, np.zeros(()), {}, {}, {})
    for raw in maps:
        found = found.plus(raw, 1)
    return found


class Tails:
    """At each place, pooled over neighbours: the chance of |z| beyond ``TAIL`` and the mean excess there."""

    def __init__(self, maps: Maps, healthy: Healthy) -> None:
        beyond = excess = brains = np.zeros(maps[0].brain.shape)
        for raw in maps:
            size = np.abs(anomaly_maps(raw, healthy.plus(raw, -1))["standardised"])
            beyond, excess = beyond + (size > TAIL), excess + (size - TAIL).clip(0)
            brains = brains + (raw.brain & healthy.usual)
        pooled = [ndimage.gaussian_filter(v, POOLED) for v in (beyond, excess, brains)]
        self.chance = ((pooled[0] + 1e-3) / (pooled[2] + 1e-9)).clip(1e-4, 0.5)
        self.mean = (pooled[1] / (pooled[0] + 1e-6)).clip(0.1, 2)

    def surprise(self, z: np.ndarray) -> np.ndarray:
        """-log of the chance of a value so far from 0."""
        size = np.abs(z)
        return np.where(
            size > TAIL, -np.log(self.chance) + (size - TAIL) / self.mean, -np.log(self.chance) * size / TAIL
        )


def scores(raw: RawMaps, healthy: Healthy, tails: Tails) -> dict[str, float]:
    """Those of the package, and the mean of the most surprising voxels."""
    z = anomaly_maps(raw, healthy)["standardised"]
    where = raw.brain & healthy.usual
    return {**map_scores(raw, healthy), "tail": peak((tails.surprise(z) * where)[raw.brain], raw.brain.shape)}


def combined(validation: pd.DataFrame, test: pd.DataFrame) -> dict[str, np.ndarray]:
    """Fisher's and Stouffer's combination of conformal p-values among healthy validation scans."""
    p = {n: [(1 + (validation[n] >= v).sum()) / (len(validation) + 1) for v in test[n]] for n in validation}
    found = {}
    for names in COMBINED:
        values = np.array([p[n] for n in names])
        found["Fisher: " + ", ".join(names)] = -np.log(values).sum(0)
        found["Stouffer: " + ", ".join(names)] = norm.isf(values).sum(0)
    return found


def measure(run: Path, name: str, data_dir: Path) -> dict[str, Any]:
    """Every alternative of one detector of one run."""
    trained = choose_trained(run, name)
    data = HeadCTDataModule(prepared_of(trained, data_dir), 8)
    data.setup()
    count = len(data.split("train"))
    rows = ranked(data.split("test").reset_index(drop=True))
    detector, config = trained.load(), trained.lineage["settings"]["detector"]["module"]
    validation = residuals(detector, data, "validation", np.arange(len(data.split("validation"))))
    test = residuals(detector, data, "test", rows.index.to_numpy())
    crossed: Maps = []
    for fold in range(FOLDS):
        out = np.arange(fold, count, FOLDS)
        other = build_detector(config)
        kept = np.setdiff1d(np.arange(count), out)
        other.fit(data.volumes("train")[kept], data.volumes("validation"), data.volumes("train", "brain_mask")[kept])
        crossed += residuals(other, data, "train", out)
    found = {}
    for words, maps in (("validation", validation), ("cross-fitted and validation", validation + crossed)):
        healthy = usual(maps)
        what = f"{name}, {words}"
        values = [
            peak(np.abs(anomaly_maps(m, healthy)["standardised"][m.brain]), m.brain.shape)
            for m in track(test, len(test), what)
        ]
        found[f"peak, statistics: {words}"] = ranks(rows, np.array(values))
    healthy = usual(validation)
    tails = Tails(validation, healthy)
    held_out = pd.DataFrame([scores(m, healthy.plus(m, -1), tails) for m in track(validation, len(validation), name)])
    tested = pd.DataFrame([scores(m, healthy, tails) for m in track(test, len(test), name)])
    every = {n: tested[n].to_numpy() for n in tested} | combined(held_out, tested)
    return found | {n: ranks(rows, values) for n, values in every.items()}


def main() -> None:
    """Measure, print, write."""
    arguments = options(__doc__)
    found = {
        name: [measure(arguments.runs_dir / run, name, arguments.data_dir) for run in arguments.runs]
        for name in DETECTORS
    }
    table = {
        name: {
            alternative: {
                site: round(float(np.mean([r[alternative][site]["value"] for r in runs])), 3) for site in "AB"
            }
            for alternative in runs[0]
        }
        for name, runs in found.items()
    }
    (HERE / "alternatives.json").write_text(json.dumps({"runs": arguments.runs, "auc": table}, indent=1) + "\n")
    for name, rows in table.items():
        for alternative, auc in rows.items():
            print(f"{name:12} {alternative:70} A {auc['A']:.3f}  B {auc['B']:.3f}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
