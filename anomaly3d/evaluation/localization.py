"""Where the anomaly is: an anomaly map against the true mask, inside the brain of one scan.

An anomaly map is larger where a voxel looks less healthy. Truth and map are ``(D, H, W)`` on one grid.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps, anomaly_maps, strength
from anomaly3d.scoring.calibration import NEIGHBOURS
from anomaly3d.statistics.auc import share
from anomaly3d.statistics.bootstrap import mean_interval

SMALLEST = 3  # voxels of a lesion that counts; smaller ones are crumbs of resampling
FOUND = 0.1  # share of a lesion that must be flagged for it to count as found


def locate(anomaly: np.ndarray, truth: np.ndarray, brain: np.ndarray, threshold: float | None) -> dict[str, Any] | None:
    """Numbers of one scan, None where no true voxel lies in the brain.

    ``auroc`` and ``ap`` over the brain's voxels with ``chance_ap``, the share that is true; where a ``threshold`` is
    locked, ``dice``, and how many ``lesions`` there are and are ``found``.
    """
    truth = truth & brain
    if not truth.any() or truth[brain].all():
        return None
    labels, values = truth[brain], anomaly[brain]
    numbers = {
        "auroc": float(roc_auc_score(labels, values)),
        "ap": float(average_precision_score(labels, values)),
        "chance_ap": float(labels.mean()),
    }
    if threshold is None:
        return numbers
    flagged = (anomaly >= threshold) & brain
    parts, count = ndimage.label(truth, NEIGHBOURS)
    sizes = ndimage.sum_labels(truth, parts, range(1, count + 1))
    shares = ndimage.mean(flagged, parts, range(1, count + 1))
    counted = np.asarray(sizes) >= SMALLEST
    return {
        **numbers,
        "dice": float(2 * (flagged & truth).sum() / (flagged.sum() + truth.sum())),
        "lesions": int(counted.sum()),
        "found": int((np.asarray(shares)[counted] >= FOUND).sum()),
    }


def false_parts(anomaly: np.ndarray, brain: np.ndarray, threshold: float) -> int:
    """How many separate places of a healthy scan are flagged, of ``SMALLEST`` voxels and more."""
    parts, count = ndimage.label((anomaly >= threshold) & brain, NEIGHBOURS)
    sizes = np.asarray(ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1)))
    return int((sizes >= SMALLEST).sum())


def locate_scan(
    scan: ScanMaps, masks: dict[str, str], healthy: Healthy, thresholds: dict[str, float] | None
) -> list[dict[str, Any]]:
    """Rows of one scan: for every anomaly map and every mask of ``masks`` (its name, its file), or for none of them.

    Without masks the scan is a healthy one and a row has ``false_parts``, which takes thresholds.
    """
    raw = scan.read()
    brain = raw.brain
    rows: list[dict[str, Any]] = []
    for name, signed in anomaly_maps(raw, healthy).items():
        anomaly, row = strength(name, signed), {"scan_id": scan.scan_id, "map": name}
        if not masks and thresholds:
            rows.append({**row, "mask": "", "false_parts": false_parts(anomaly, brain, thresholds[name])})
        for mask, path in masks.items():
            found = locate(anomaly, voxels(path) > 0, brain, thresholds[name] if thresholds else None)
            if found:
                rows.append({**row, "mask": mask, **found})
    return rows


def summarise_localization(rows: pd.DataFrame) -> dict[str, Any]:
    """Per mask and map: means over scans with an interval over subjects, and the share of lesions found.

    Dice, lesions found and false parts are there where a threshold was.

    Args:
        rows: of ``locate_scan``, with ``subject_id``.
    """
    summary: dict[str, Any] = {}
    for (mask, name), members in rows[rows["mask"] != ""].groupby(["mask", "map"]):
        entry: dict[str, Any] = {"n_scans": len(members)}
        for number in ("auroc", "ap", "chance_ap", *(["dice"] if "dice" in members else [])):
            entry[number] = mean_of(members, number)
        lesions = members["lesions"].to_numpy(int) if "lesions" in members else np.zeros(0, int)
        if lesions.any():
            found = members["found"].to_numpy(int)
            hits = np.concatenate([np.arange(n) < k for k, n in zip(found, lesions, strict=True)])
            entry["found"] = share(hits, np.repeat(members["subject_id"].to_numpy(), lesions))
        summary.setdefault(str(mask), {})[str(name)] = entry
    for name, members in rows[rows["mask"] == ""].groupby("map"):
        entry = {**mean_of(members, "false_parts"), "n_scans": len(members)}
        summary.setdefault("healthy_false_parts", {})[str(name)] = entry
    return summary


def mean_of(rows: pd.DataFrame, column: str) -> dict[str, Any]:
    """The mean over scans with its interval over subjects, None for one subject."""
    mean, low, high = mean_interval(rows[column].to_numpy(float), rows["subject_id"].to_numpy())
    return {"value": mean, "ci95": None if np.isnan(low) else [low, high]}
