"""What each part of today's layer is worth: ``python -m experiments.scores.ablation runs/race-denoising-2``

Of a run that was evaluated on its own cohort: ``exceedance`` of its test scans by the layer as it is, and with one part
at a time taken away or put another way. Writes ``ablation.json`` and the table of the README.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd

from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import of_lesion, ranked
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring import anomaly_maps
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps, maps_of
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.scan_scores import exceedance, peak
from anomaly3d.statistics.auc import auc, compare_auc, holm
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import track
from experiments.comparison.table import gap_text, shown
from experiments.scores.measure import HERE, VOLUMES, fill, markdown, mean_square

DENSEST = (90 + 20) / 60 - 1  # 90 HU in -20 to 100 HU
NONE = 1e-3  # voxels: a Gaussian that changes nothing
AS_IT_IS = "as it is"

Summary = Callable[[np.ndarray, tuple[int, ...]], float]


def exceeding(z: np.ndarray, shape: tuple[int, ...]) -> float:
    """``exceedance`` of z."""
    return exceedance(z)


def largest(z: np.ndarray, shape: tuple[int, ...]) -> float:
    """``peak`` of |z|."""
    return peak(np.abs(z), shape)


class OneSpread(Healthy):
    """One mean and spread for all voxels."""

    @cached_property
    def statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The means over the brain."""
        inside = self.usual
        return {
            name: tuple(np.full_like(v, v[inside].mean()) for v in pair)  # type: ignore[misc]
            for name, pair in super().statistics.items()
        }


# name: constants of the layer, what is denser is not judged, kind of statistics, map, scan score
WAYS: dict[str, tuple[dict[str, float], float | None, type[Healthy], str, Summary]] = {
    AS_IT_IS: ({}, DENSEST, Healthy, "standardised", exceeding),
    "what is denser than blood is judged": ({}, None, Healthy, "standardised", exceeding),
    "the largest 100 voxels (`peak`)": ({}, DENSEST, Healthy, "standardised", largest),
    "mean square of all voxels": ({}, DENSEST, Healthy, "standardised", mean_square),
    "one healthy spread for all places": ({}, DENSEST, OneSpread, "standardised", exceeding),
    "not standardised, mean square": ({}, DENSEST, Healthy, "residual", mean_square),
    "not standardised, the largest 100 voxels": ({}, DENSEST, Healthy, "residual", largest),
    "not smoothed": ({"SMOOTHING": NONE}, DENSEST, Healthy, "standardised", exceeding),
    "spread of each voxel by itself": ({"POOLED": NONE}, DENSEST, Healthy, "standardised", exceeding),
    "also where brain is unusual": ({"USUAL": 0.0}, DENSEST, Healthy, "standardised", exceeding),
}


def scores_of(way: str, reference: Sequence[ScanMaps], test: Sequence[ScanMaps]) -> np.ndarray:
    """Of the test scans in one of ``WAYS``."""
    constants, densest, kind, of, summary = WAYS[way]
    with patch.dict(vars(anomaly_maps), constants):
        healthy: Healthy = kind(0, np.zeros(()), {}, {}, {}, densest=densest)
        for scan in reference:
            healthy = healthy.plus(scan.read(), 1)
        read = (scan.read() for scan in track(test, len(test), way))
        return np.array(
            [summary(anomaly_maps.anomaly_maps(raw, healthy)[of][raw.brain], raw.brain.shape) for raw in read]
        )


def measure(run: Path, data_dir: Path) -> dict[str, Any]:
    """By way: AUC at both sites, at A by kind of bleed and by volume, and the difference from the layer as it is."""
    trained = choose_trained(run, None)
    data = HeadCTDataModule(prepared_of(trained, data_dir), 8)
    data.setup()
    out = run / "evaluation" / trained.label
    table = ranked(data.split("test").reset_index(drop=True)).reset_index(drop=True)
    reference, test = maps_of(data.split("validation"), out / "validation"), maps_of(table, out)
    own = table[table["site"] == "A"]
    healthy, ml = own["label"] == "0", pd.to_numeric(own["lesion_ml"])
    groups = {"A": own, "B": table[table["site"] == "B"], **{kind: of_lesion(own, kind) for kind in TYPES}}
    groups |= {f"{low:g}-{high:g} ml": own[healthy | (ml >= low) & (ml < high)] for low, high in pairwise(VOLUMES)}
    labels = table["label"].astype(int).to_numpy()
    scores = {way: scores_of(way, reference, test) for way in WAYS}
    return {
        way: {
            **{name: auc(labels[part.index], values[part.index]).as_json() for name, part in groups.items()},
            "against": compare_auc(labels, values, scores[AS_IT_IS]).as_json(),
        }
        for way, values in scores.items()
    }


def main() -> None:
    """Measure, write, fill the README."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    asked = parser.parse_args()
    found = measure(asked.run, asked.data_dir)
    with written_whole(HERE / "ablation.json") as beside:
        beside.write_text(json.dumps(found, indent=1) + "\n")
    fill_readme(found)


def fill_readme(found: dict[str, Any]) -> None:
    """The table, of what ``measure`` gives."""
    others = [way for way in found if way != AS_IT_IS]
    adjusted = dict(zip(others, holm([found[way]["against"]["p"] for way in others]), strict=True))
    groups = [name for name in found[AS_IT_IS] if name not in ("A", "B", "against")]
    rows = [
        [
            way,
            *(shown(row[site]) for site in "AB"),
            gap_text({**row["against"], "p_holm": adjusted[way]} if way in adjusted else None),
            *(f"{row[name]['value']:.2f}" for name in groups),
        ]
        for way, row in found.items()
    ]
    fill(HERE / "README.md", "ablation", markdown(["layer", "A", "B", "against it, A and B, p (Holm)", *groups], rows))


if __name__ == "__main__":
    main()
