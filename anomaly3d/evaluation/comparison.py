"""Evaluated runs side by side: mean AUC over seeds, and the paired difference of the first detector and each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from anomaly3d.errors import UserError
from anomaly3d.evaluation.metrics import as_text, labels_and_scores, ranked, subjects_of
from anomaly3d.scoring.scan_scores import score_names
from anomaly3d.scoring.writer import read_scores
from anomaly3d.statistics.auc import bootstrap_auc, bootstrap_difference, compare_auc, holm
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import console, say


@dataclass(frozen=True)
class Comparison:
    """``conf/compare``: evaluated runs by the name they get in the table, one a seed."""

    runs: Path
    detectors: Mapping[str, str | Sequence[str]]
    score: str
    out: Path


def find_scores(runs: Path, name: str) -> pd.DataFrame:
    """The test scans of an evaluated run's detector: ``demo`` (the one its report is about) or ``demo/pca``.

    Raises:
        UserError: it has not been evaluated.
    """
    run, _, detector = name.partition("/")
    folder = runs / run / "evaluation"
    if not detector and (folder / "metrics.json").exists():
        detector = json.loads((folder / "metrics.json").read_text())["focus"]
    for path in (folder / detector / "rescored.csv", folder / detector / "scores.csv"):
        if detector and path.exists():
            return ranked(read_scores(path)).set_index("scan_id", drop=False).sort_index()
    raise UserError(f"{runs / name} holds no evaluation: run 'python -m anomaly3d.evaluate run={run}' first")


def read_detectors(wanted: Comparison) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows of the test scans, and the scores ``(seeds, N)`` of each detector on them.

    Raises:
        UserError: nothing to compare, other scans, or a score that a run does not have.
    """
    if not isinstance(wanted.detectors, Mapping) or not wanted.detectors:
        raise UserError("which detectors? For example 'detectors={ours: [demo,demo-seed1], pca: [demo/pca]}'")
    rows: pd.DataFrame | None = None
    found: dict[str, np.ndarray] = {}
    for detector, names in wanted.detectors.items():
        scores = []
        for name in [names] if isinstance(names, str) else names:
            table = find_scores(wanted.runs, str(name))
            rows = table if rows is None else rows
            if list(table.index) != list(rows.index) or (table["label"] != rows["label"]).any():
                raise UserError(f"{name} was tested on other scans than the first run: compare runs of one cohort")
            if wanted.score not in table:
                raise UserError(f"score={wanted.score}: {name} has {', '.join(score_names(table))}")
            scores.append(table[wanted.score].to_numpy(float))
        found[str(detector)] = np.stack(scores)
    assert rows is not None
    return rows, found


def compare_runs(wanted: Comparison) -> int:
    """Write ``out`` and show it; returns the command's exit code."""
    rows, detectors = read_detectors(wanted)
    labels, _ = labels_and_scores(rows, wanted.score)
    if len(set(labels)) < 2:
        raise UserError("the test scans lack normal or abnormal ones, so there is no AUC to compare")
    result = {"score": wanted.score, **compared(labels, subjects_of(rows), detectors)}
    with written_whole(wanted.out) as path:
        path.write_text(json.dumps(result, indent=1))
    show(result, next(iter(detectors)))
    say(f"written to {wanted.out}")
    return 0


def compared(labels: np.ndarray, subjects: np.ndarray, detectors: dict[str, np.ndarray]) -> dict[str, Any]:
    """``auc`` of each detector over its seeds, and the paired ``difference`` of the first and each other.

    Args:
        detectors: scores ``(seeds, N)`` by name.
    """
    first, *others = detectors
    auc = {
        name: {**bootstrap_auc(labels, scores, subjects).as_json(), "seeds": len(scores)}
        for name, scores in detectors.items()
    }
    difference: dict[str, Any] = {}
    for name in others:
        a, b = detectors[first], detectors[name]
        difference[name] = bootstrap_difference(labels, a, b, subjects).as_json()
        if len(a) == len(b) == 1:
            difference[name]["delong"] = compare_auc(labels, a[0], b[0], subjects).as_json()
    for entry, p in zip(difference.values(), holm([d["p"] for d in difference.values()]), strict=True):
        entry["p_holm"] = p
    return {"auc": auc, "difference": difference}


def show(result: dict[str, Any], first: str) -> None:
    """The comparison in the terminal."""
    n = result["auc"][first]
    title = f"{result['score']}, {n['n_normal']} + {n['n_abnormal']} scans: mean over seeds [95 %, subjects and seeds]"
    table = Table(title=title, title_justify="left")
    for column in ("Detector", "Seeds", "AUC", f"{first} minus it", "p", "p, Holm"):
        table.add_column(column)
    for name, estimate in result["auc"].items():
        difference = result["difference"].get(name)
        cells = (
            [as_text(difference), f"{difference['p']:.3f}", f"{difference['p_holm']:.3f}"] if difference else [""] * 3
        )
        table.add_row(name, str(estimate["seeds"]), as_text(estimate), *cells)
    console.print(table)
