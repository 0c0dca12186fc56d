"""Evaluated runs side by side: AUC over seeds, and the paired difference of the first detector and each other."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from anomaly3d.errors import UserError
from anomaly3d.evaluation.gathering import gather, training_of
from anomaly3d.evaluation.metrics import as_text, labels_and_scores, ranked, subjects_of
from anomaly3d.runs.folder import reported_on
from anomaly3d.scoring.scan_scores import score_names
from anomaly3d.scoring.writer import RESCORED, read_scores
from anomaly3d.statistics.auc import (
    auc_covariance,
    bootstrap_auc,
    bootstrap_difference,
    compare_auc,
    fewest_subjects,
    holm,
)
from anomaly3d.statistics.seeds import paired_difference, spread
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import console, say

OF_SCAN = ["label", "subject_id", "cohort", "group", "lesions", "lesion_ml"]  # what two runs must say alike of a scan
FEWEST = 3  # seeds for a test over them
FEW = 10  # subjects of a class below which 9 to 18 of 100 differences that are none have p < .05


@dataclass(frozen=True)
class Comparison:
    """``conf/compare``: evaluated runs by the name they get in the table, one a seed, or patterns of names of runs."""

    folder: Path
    runs: str | Sequence[str]
    detectors: Mapping[str, str | Sequence[str]] | None
    score: str
    out: Path


def find_scores(runs: Path, name: str) -> pd.DataFrame:
    """The test scans of an evaluated run's detector: ``demo`` (the one its report is about) or ``demo/pca``.

    Raises:
        UserError: it has not been evaluated.
    """
    run, _, detector = name.partition("/")
    folder, detector = runs / run / "evaluation", detector or reported_on(runs / run)
    for path in (folder / detector / RESCORED, folder / detector / "scores.csv"):
        if detector and path.exists():
            return ranked(read_scores(path)).set_index("scan_id", drop=False).sort_index()
    if detector and (metrics := folder / "metrics.json").exists():
        there = json.loads(metrics.read_text())["detectors"]
        raise UserError(f"{name}: the evaluation of run {run} holds {', '.join(there)}, not {detector}")
    raise UserError(f"{runs / name} holds no evaluation: run 'python -m anomaly3d.evaluate run={run}' first")


def wanted_runs(wanted: Comparison) -> dict[str, list[str]]:
    """The runs of each detector.

    Raises:
        UserError: none, or both ways to name them.
    """
    if bool(wanted.runs) == bool(wanted.detectors):
        raise UserError(
            "which runs? 'runs=[kappa-*]' groups them by their settings; 'detectors={ours: [demo,demo-seed1], pca: "
            "[demo/pca]}' names the groups"
        )
    if wanted.runs:
        several = wanted.runs if isinstance(wanted.runs, list) else [wanted.runs]
        return gather(wanted.folder, [str(run) for run in several])
    if not isinstance(wanted.detectors, Mapping):
        raise UserError("detectors=... takes runs by name, such as 'detectors={ours: [demo,demo-seed1]}'")
    groups = {str(d): [names] if isinstance(names, str) else names for d, names in wanted.detectors.items()}
    for detector, names in groups.items():
        if not isinstance(names, Sequence) or not names:
            raise UserError(f"detectors: {detector} takes one run or several, such as {detector}: [demo,demo-seed1]")
        parts = [str(name).partition("/") for name in names]
        trainings = [(run, part or reported_on(wanted.folder / run)) for run, _, part in parts]
        if len(set(trainings)) < len(trainings):
            raise UserError(f"detectors: {detector} names a training twice, which would count as two: name it once")
    return {detector: [str(name) for name in names] for detector, names in groups.items()}


def read_detectors(wanted: Comparison) -> tuple[pd.DataFrame, dict[str, np.ndarray], dict[str, list[int | None]]]:
    """Rows of the test scans, the scores ``(seeds, N)`` of each detector on them, and its seeds, None for unknown.

    Raises:
        UserError: nothing to compare, other scans, or a score that a run does not have.
    """
    rows: pd.DataFrame | None = None
    found: dict[str, np.ndarray] = {}
    seeds: dict[str, list[int | None]] = {}
    for detector, names in wanted_runs(wanted).items():
        scores = []
        for name in names:
            table = find_scores(wanted.folder, name)
            rows = table if rows is None else rows
            same = list(table.index) == list(rows.index)
            if not same or (table[OF_SCAN] != rows[OF_SCAN]).any(axis=None):
                raise UserError(f"{name} was tested on other scans than the first run: compare runs of one cohort")
            if wanted.score not in score_names(table):
                raise UserError(f"score={wanted.score}: {name} has {', '.join(score_names(table))}")
            scores.append(table[wanted.score].to_numpy(float))
        found[detector] = np.stack(scores)
        trainings = [training_of(wanted.folder, name) for name in names]
        seeds[detector] = [training.seed if training else None for training in trainings]
    assert rows is not None
    return rows, found, seeds


def compare_runs(wanted: Comparison) -> int:
    """Write ``out`` and show it; returns the command's exit code."""
    rows, detectors, seeds = read_detectors(wanted)
    labels, _ = labels_and_scores(rows, wanted.score)
    if len(set(labels)) < 2:
        raise UserError("the test scans lack normal or abnormal ones, so there is no AUC to compare")
    result = {"score": wanted.score, **compared(labels, subjects_of(rows), detectors, seeds)}
    with written_whole(wanted.out) as path:
        path.write_text(json.dumps(result, indent=1))
    show(result, next(iter(detectors)))
    if result["fewest_subjects"] < FEW:
        fewest = f"subjects in the smaller class: {result['fewest_subjects']}"
        say(f"{fewest}; of fewer than {FEW} intervals are too narrow and p-values too small")
    say(f"written to {wanted.out}")
    return 0


def compared(
    labels: np.ndarray,
    subjects: np.ndarray,
    detectors: Mapping[str, np.ndarray],
    seeds: Mapping[str, Sequence[int | None]],
) -> dict[str, Any]:
    """``auc`` of each detector over its seeds, and the paired ``difference`` of the first and each other.

    The difference is that of other patients and other trainings: a bootstrap draws subjects and seeds. Where both
    have the same three seeds or more, ``over_seeds`` is that of other trainings on these very patients.

    Args:
        detectors: scores ``(seeds, N)`` by name.
        seeds: of each, in that order.
    """
    first, *others = detectors
    each = {name: [float(auc_covariance(labels, s[:, None])[0][0]) for s in detectors[name]] for name in detectors}
    auc = {
        name: {
            **bootstrap_auc(labels, scores, subjects).as_json(),
            "seeds": len(scores),
            "spread": spread(np.array(each[name])),
            "runs": [{"seed": seed, "auc": value} for seed, value in zip(seeds[name], each[name], strict=True)],
        }
        for name, scores in detectors.items()
    }
    difference: dict[str, Any] = {}
    for name in others:
        a, b = detectors[first], detectors[name]
        difference[name] = bootstrap_difference(labels, a, b, subjects).as_json()
        if len(a) == len(b) == 1:
            difference[name]["delong"] = compare_auc(labels, a[0], b[0], subjects).as_json()
        of_a, of_b = (dict(zip(seeds[n], each[n], strict=True)) for n in (first, name))
        if of_a.keys() == of_b.keys() and len(of_a) == len(a) == len(b) >= FEWEST:
            gaps = np.array([of_a[seed] - of_b[seed] for seed in of_a])
            difference[name]["over_seeds"] = {**paired_difference(gaps).as_json(), "n": len(gaps)}
    paired = [entry["over_seeds"] for entry in difference.values() if "over_seeds" in entry]
    for entries in (list(difference.values()), paired):
        for entry, p in zip(entries, holm([e["p"] for e in entries]), strict=True):
            entry["p_holm"] = p
    return {"auc": auc, "difference": difference, "fewest_subjects": fewest_subjects(labels, subjects)}


def show(result: dict[str, Any], first: str) -> None:
    """The comparison in the terminal."""
    n = result["auc"][first]
    title = f"{result['score']}, {n['n_normal']} + {n['n_abnormal']} scans: mean over seeds [95 %, subjects and seeds]"
    table = Table(title=title, title_justify="left")
    paired = any("over_seeds" in difference for difference in result["difference"].values())
    for column in ("Detector", "Seeds", "AUC", "SD over seeds", f"{first} minus it", "p", "p, Holm"):
        table.add_column(column)
    if paired:
        table.add_column("same scans, other seeds: p, Holm")
    for name, estimate in result["auc"].items():
        cells = [name, str(estimate["seeds"]), as_text(estimate)]
        cells.append(as_text(estimate["spread"]) if estimate["spread"] else "")
        if difference := result["difference"].get(name):
            cells += [as_text(difference), f"{difference['p']:.3f}", f"{difference['p_holm']:.3f}"]
            over_seeds = difference.get("over_seeds")
            cells += [f"{over_seeds['p_holm']:.3f}"] if over_seeds else []
        table.add_row(*cells)
    console.print(table)
