"""From anomaly maps to scan scores, beside the detector's own; and which of them to use, without a lesion label.

Each split has one task: what is usual is measured on ``healthy_reference`` scans, or on validation scans where there
are none; a score is chosen on validation scans, its threshold set on calibration scans.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, RawMaps, ScanMaps, anomaly_maps, standardised_name
from anomaly3d.scoring.combination import COMBINED, with_combined
from anomaly3d.statistics.auc import compare_auc
from anomaly3d.statistics.bootstrap import weighted_auc
from anomaly3d.system.workers import Workers, run_in_threads

PEAK = 100 / 64**3  # of a volume's voxels: 100 at 64^3, 1.8 ml of brain
RARE = 3.0  # healthy spreads from which a voxel counts in ``exceedance``
EXTENT, HEIGHT = 0.5, 2.0  # exponents of cluster enhancement, those of Smith and Nichols 2009
HEIGHTS = np.arange(1.5, 20, 0.5)  # healthy spreads at which clusters are looked for
KAPPAS = (0.1, 10.0)  # other weights of the second part of a score of two
FEWEST = 10  # validation subjects from which the paired test over subjects can be trusted
ONE_SIGN = ("_brighter", "_darker")  # scores that end so see half of what could be wrong: named, never chosen
BEYOND_CHANCE = 0.05  # p-value below which a score is better than A(x) on validation scans


def peak(values: np.ndarray, shape: tuple[int, ...]) -> float:
    """Mean of the largest of ``values (N,)``, as many as ``PEAK`` of a volume of ``shape``."""
    count = min(max(1, round(PEAK * np.prod(shape))), len(values))
    largest_first = -np.partition(-values, count - 1)  # among many zeros numpy finds the smallest sooner
    return float(largest_first[:count].mean())


def exceedance(z: np.ndarray) -> float:
    """Mean of what |z| has above ``RARE``, over ``z (N,)``."""
    return float(np.mean((np.abs(z) - RARE).clip(min=0)))


def enhanced(z: np.ndarray) -> np.ndarray:
    """A standardised map ``(D, H, W)`` with what is large and in one place raised: threshold-free cluster enhancement.

    Smith and Nichols 2009: at each voxel the sum of extent^0.5 h^2 dh over heights h below |z|, where the extent is
    that of the voxel's cluster of one sign at this height, here in units of ``PEAK``.

    Clusters are parts of the graph of neighbours above a height, which is small: labels of whole volumes take two
    to four times as long.
    """
    found = np.zeros(z.size)
    for signed in (z, -z):
        voxels, first, second = neighbours(signed > HEIGHTS[0])
        values = signed.ravel()[voxels]
        reach = np.minimum(values[first], values[second])
        for height in HEIGHTS[signed.max() > HEIGHTS]:
            above, joined = values > height, reach > height
            number = np.cumsum(above) - 1
            voxels, values = voxels[above], values[above]
            first, second, reach = number[first[joined]], number[second[joined]], reach[joined]
            graph = coo_array((np.ones(len(first), bool), (first, second)), (len(voxels), len(voxels)))
            cluster = connected_components(graph, directed=False)[1]
            extent = np.bincount(cluster)[cluster] / (PEAK * z.size)
            found[voxels] += extent**EXTENT * height**HEIGHT * (HEIGHTS[1] - HEIGHTS[0])
    return found.reshape(z.shape)


def neighbours(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The voxels of a mask ``(D, H, W)`` as flat indices ``(N,)``, and of each two that share a face their places among
    them, ``(M,)`` each."""
    voxels = np.flatnonzero(inside)
    place = np.zeros(inside.shape, np.int32)
    place.ravel()[voxels] = np.arange(len(voxels), dtype=np.int32)
    pairs = []
    for axis in range(inside.ndim):
        low, high = ([slice(None)] * inside.ndim for _ in range(2))
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        both = inside[tuple(low)] & inside[tuple(high)]
        pairs.append((place[tuple(low)][both], place[tuple(high)][both]))
    first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return voxels, first, second


def map_scores(raw: RawMaps, healthy: Healthy) -> dict[str, float]:
    """Scores of one scan's maps; those of the residual by their plain names, others after the map's.

    ``masked`` and ``smoothed`` are mean squares of the raw map, ``standardised`` of the standardised one, z; ``peak``
    is the mean of the largest |z|, ``peak_brighter`` and ``peak_darker`` of one sign; ``exceedance`` the mean of what
    |z| has above ``RARE``; ``clustered`` the mean of the largest values of ``enhanced``.
    """
    maps, brain = anomaly_maps(raw, healthy), raw.brain
    scores: dict[str, float] = {}
    for name, values in raw.values.items():
        z = maps[standardised_name(name)][brain]
        found = {
            "masked": float(np.mean(values[brain] ** 2)),
            "smoothed": float(np.mean(maps[name][brain] ** 2)),
            "standardised": float(np.mean(z**2)),
            "peak": peak(np.abs(z), brain.shape),
            "peak_brighter": peak(z, brain.shape),
            "peak_darker": peak(-z, brain.shape),
            "exceedance": exceedance(z),
            "clustered": peak(enhanced(maps[standardised_name(name)])[brain], brain.shape),
        }
        scores |= {score if name == RESIDUAL else f"{name}_{score}": value for score, value in found.items()}
    return scores


def scores_from_files(scans: list[ScanMaps], healthy: Healthy, left_out: Sequence[ScanMaps]) -> list[dict[str, Any]]:
    """``scan_id`` and ``map_scores`` of some scans, by what is usual in other scans than ``left_out``."""
    healthy = healthy.without(left_out)
    return [{"scan_id": scan.scan_id, **map_scores(scan.read(), healthy)} for scan in scans]


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


def rescore(
    table: pd.DataFrame,
    maps: list[ScanMaps],
    healthy: Healthy,
    workers: Workers,
    what: str,
    measured_on: Mapping[str, Sequence[ScanMaps]] | None = None,
) -> pd.DataFrame:
    """``table`` of a detector's own scores with a column for every other score.

    Args:
        measured_on: by ``scan_id``, the scans that ``healthy`` was measured on which are of the same subject; they are
            left out where that scan is scored.
    """
    found = part_scores(table, healthy)
    if not maps:
        return with_combined(found, healthy.reference)
    jobs: dict[str, tuple[list[ScanMaps], Healthy, Sequence[ScanMaps]]] = {}
    for scan in maps:
        left_out = (measured_on or {}).get(scan.scan_id, ())
        jobs.setdefault((left_out or [scan])[0].scan_id, ([], healthy, left_out))[0].append(scan)
    rows = [row for rows in run_in_threads(scores_from_files, list(jobs.values()), workers, what) for row in rows]
    merged = found.merge(pd.DataFrame(rows), on="scan_id", how="left", validate="one_to_one")
    return with_combined(merged, healthy.reference)


def of_one_subject(table: pd.DataFrame, maps: list[ScanMaps]) -> dict[str, list[ScanMaps]]:
    """By ``scan_id``, the maps of all scans of the same subject.

    Args:
        table: with ``scan_id`` and ``subject_id`` of each.
    """
    subject_of = dict(zip(table["scan_id"], table["subject_id"], strict=True))
    by_subject: dict[str, list[ScanMaps]] = {}
    for scan in maps:
        by_subject.setdefault(subject_of[scan.scan_id], []).append(scan)
    return {scan.scan_id: by_subject[subject_of[scan.scan_id]] for scan in maps}


def score_names(table: pd.DataFrame) -> list[str]:
    """The columns of a rescored table that are scores, A(x) first; manifest columns are text."""
    return sorted((str(c) for c in table if pd.api.types.is_float_dtype(table[c])), key=lambda name: name != "total")


def choose(validation: pd.DataFrame, pseudo: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """The score that best tells validation scans from the same scans with something pasted in, and the AUC of each.

    Another score takes the place of A(x), or of an ensemble's combined one, only where it is better beyond chance
    (paired test over subjects, 5 % shared by all that could have been chosen), and there are ``FEWEST`` of them: few
    validation scans cannot rank many scores.
    Scores of ``ONE_SIGN`` are ranked only.
    """
    labels = np.r_[np.zeros(len(validation), int), np.ones(len(pseudo), int)]
    subjects = np.r_[validation["subject_id"], pseudo["subject_id"]]
    scores = {name: np.r_[validation[name], pseudo[name]].astype(float) for name in score_names(validation)}
    ones = np.ones((1, len(labels)))
    ranking = {name: float(weighted_auc(labels, values, ones)[0]) for name, values in scores.items()}
    ranking = dict(sorted(ranking.items(), key=lambda item: -item[1]))
    best = next(name for name in ranking if not name.endswith(ONE_SIGN))
    enough = len(set(subjects)) >= FEWEST
    usual = COMBINED if COMBINED in scores else "total"
    rivals = sum(name != usual and not name.endswith(ONE_SIGN) for name in ranking)
    proven = enough and rivals * compare_auc(labels, scores[best], scores[usual], subjects).p < BEYOND_CHANCE
    return (best if proven else usual), ranking


def choose_without_each(validation: pd.DataFrame, pseudo: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """By kind of pasted anomaly (column ``lesions``): which score the others choose, and its AUC on this kind beside
    that of A(x); says whether the choice holds for what it was not made on. Of a single kind nothing can be said."""
    found: dict[str, dict[str, Any]] = {}
    for kind, own in pseudo.groupby("lesions") if pseudo["lesions"].nunique() > 1 else ():
        chosen, _ = choose(validation, pseudo[pseudo["lesions"] != kind])
        ranking = choose(validation, own)[1]
        found[str(kind)] = {"chosen_by_others": chosen, "auc": ranking[chosen], "auc_total": ranking["total"]}
    return found
