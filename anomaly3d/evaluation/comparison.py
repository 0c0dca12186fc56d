"""Evaluated runs side by side: mean AUC over seeds, and the paired difference of the first detector and each other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from anomaly3d.errors import UserError
from anomaly3d.evaluation.callbacks import read_scores
from anomaly3d.evaluation.metrics import as_text, labels_and_scores, ranked, subjects_of
from anomaly3d.evaluation.rescoring import score_names
from anomaly3d.evaluation.statistics import bootstrap_auc, bootstrap_difference, compare_auc, holm
from anomaly3d.files import written_whole
from anomaly3d.progress import console, say


def find_scores(runs: Path, name: str) -> pd.DataFrame:
    """The test scans of an evaluated run (``demo``, ``demo/pca``) or of a part of it (``demo/evaluation/mirror``).

    Raises:
        UserError: it has not been evaluated.
    """
    for path in (runs / name / "evaluation" / "rescored.csv", runs / name / "scores.csv"):
        if path.exists():
            return ranked(read_scores(path)).set_index("scan_id", drop=False).sort_index()
    raise UserError(f"{runs / name} holds no evaluation: run 'python -m anomaly3d.evaluate run={name}' first")


def read_detectors(config: DictConfig) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Rows of the test scans, and the scores ``(seeds, N)`` of each detector on them.

    Raises:
        UserError: nothing to compare, other scans, or a score that a run does not have.
    """
    named = OmegaConf.to_container(config, resolve=True)["detectors"]  # type: ignore[call-overload,index]
    if not isinstance(named, dict) or not named:
        raise UserError("which detectors? For example 'detectors={ours: [demo,demo-seed1], pca: [demo/pca]}'")
    rows: pd.DataFrame | None = None
    found: dict[str, np.ndarray] = {}
    for detector, names in named.items():
        scores = []
        for name in [names] if isinstance(names, str) else names:
            table = find_scores(Path(config.runs_dir), str(name))
            rows = table if rows is None else rows
            if list(table.index) != list(rows.index) or (table["label"] != rows["label"]).any():
                raise UserError(f"{name} was tested on other scans than the first run: compare runs of one cohort")
            if config.score not in table:
                raise UserError(f"score={config.score}: {name} has {', '.join(score_names(table))}")
            scores.append(table[config.score].to_numpy(float))
        found[str(detector)] = np.stack(scores)
    assert rows is not None
    return rows, found


def compare_runs(config: DictConfig) -> int:
    """Write ``config.out`` and show it; returns the command's exit code."""
    rows, detectors = read_detectors(config)
    labels, _ = labels_and_scores(rows, config.score)
    subjects = subjects_of(rows)
    if len(set(labels)) < 2:
        raise UserError("the test scans lack normal or abnormal ones, so there is no AUC to compare")
    first, *others = detectors
    result: dict[str, Any] = {"score": config.score, "auc": {}, "difference": {}}
    for name, scores in detectors.items():
        result["auc"][name] = {**bootstrap_auc(labels, scores, subjects).as_json(), "seeds": len(scores)}
    for name in others:
        a, b = detectors[first], detectors[name]
        result["difference"][name] = bootstrap_difference(labels, a, b, subjects).as_json()
        if len(a) == len(b) == 1:
            result["difference"][name]["delong"] = compare_auc(labels, a[0], b[0], subjects).as_json()
    adjusted = holm([d["p"] for d in result["difference"].values()])
    for difference, p in zip(result["difference"].values(), adjusted, strict=True):
        difference["p_holm"] = p
    with written_whole(Path(config.out)) as path:
        path.write_text(json.dumps(result, indent=1))
    show(result, first)
    say(f"written to {config.out}")
    return 0


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
