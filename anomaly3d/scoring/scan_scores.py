"""From anomaly maps to scan scores, beside the detector's own; and which of them to use, without a lesion label.

Each split has one task: what is healthy is measured on training scans, a score is chosen on validation scans, its
threshold set on calibration scans.
"""

from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, ScanMaps, anomaly_maps, standardised_name
from anomaly3d.statistics.auc import compare_auc
from anomaly3d.statistics.bootstrap import weighted_auc
from anomaly3d.system.workers import Workers, run_parallel

LARGEST = 0.01  # share of the brain's voxels in the top-k scores
KAPPAS = (0.1, 10.0)  # other weights of the second part of a score of two
BEYOND_CHANCE = 0.05  # p-value below which a score is better than A(x) on validation scans


def top(values: np.ndarray) -> float:
    """Mean of the largest ``LARGEST`` share of ``values (N,)``."""
    count = max(1, round(LARGEST * len(values)))
    return float(np.partition(values, len(values) - count)[-count:].mean())


def map_scores(raw: dict[str, np.ndarray], brain: np.ndarray, healthy: Healthy) -> dict[str, float]:
    """Scores of one scan's maps; those of the residual by their plain names, others after the map's."""
    maps = anomaly_maps(raw, brain, healthy)
    scores: dict[str, float] = {}
    for name, values in raw.items():
        inside, smoothed, z = values[brain], maps[name][brain], maps[standardised_name(name)][brain]
        found = {
            "masked": float(np.mean(inside**2)),
            "top": top(np.abs(inside)),
            "smoothed": float(np.mean(smoothed**2)),
            "smoothed_top": top(np.abs(smoothed)),
            "brighter": float(np.mean(smoothed.clip(min=0) ** 2)),
            "brighter_top": top(smoothed),
            "darker": float(np.mean(smoothed.clip(max=0) ** 2)),
            "darker_top": top(-smoothed),
            "standardised": float(np.mean(z**2)),
            "standardised_top": top(np.abs(z)),
        }
        scores |= {score if name == RESIDUAL else f"{name}_{score}": value for score, value in found.items()}
    return scores


def scores_from_files(scan: ScanMaps, healthy: Healthy) -> dict[str, Any]:
    """``scan_id`` and ``map_scores`` of one scan."""
    return {"scan_id": scan.scan_id, **map_scores(*scan.read(), healthy)}


def part_scores(table: pd.DataFrame, healthy: Healthy) -> pd.DataFrame:
    """``table`` with other weights of the score's parts: ``kappa_K``, first + K * second, and each in units of its
    healthy median."""
    found, parts = table.copy(), list(healthy.medians)
    if len(parts) == 2:
        for kappa in KAPPAS:
            found[f"kappa_{kappa:g}"] = table[parts[0]] + kappa * table[parts[1]]
    if len(parts) > 1:
        found["balanced"] = sum(table[part] / healthy.medians[part] for part in parts)
    return found


def rescore(table: pd.DataFrame, maps: list[ScanMaps], healthy: Healthy, workers: Workers, what: str) -> pd.DataFrame:
    """``table`` of a detector's own scores with a column for every other score."""
    found = part_scores(table, healthy)
    if not maps:
        return found
    rows = pd.DataFrame(run_parallel(scores_from_files, [(scan, healthy) for scan in maps], workers, what))
    return found.merge(rows, on="scan_id", how="left", validate="one_to_one")


def score_names(table: pd.DataFrame) -> list[str]:
    """The columns of a rescored table that are scores, A(x) first; manifest columns are text."""
    return sorted((str(c) for c in table if pd.api.types.is_float_dtype(table[c])), key=lambda name: name != "total")


def choose(validation: pd.DataFrame, pseudo: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """The score that best tells validation scans from the same scans with something pasted in, and the AUC of each.

    Another score takes the place of A(x) only where it is better beyond chance (paired test over subjects, 5 %): few
    validation scans cannot rank many scores.
    """
    labels = np.r_[np.zeros(len(validation), int), np.ones(len(pseudo), int)]
    subjects = np.r_[validation["subject_id"], pseudo["subject_id"]]
    scores = {name: np.r_[validation[name], pseudo[name]].astype(float) for name in score_names(validation)}
    ones = np.ones((1, len(labels)))
    ranking = {name: float(weighted_auc(labels, values, ones)[0]) for name, values in scores.items()}
    ranking = dict(sorted(ranking.items(), key=lambda item: -item[1]))
    best = next(iter(ranking))
    difference = compare_auc(labels, scores[best], scores["total"], subjects)
    return (best if difference.p < BEYOND_CHANCE else "total"), ranking
