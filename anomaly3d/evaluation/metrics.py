"""``metrics.json`` from tables of scores."""

from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.evaluation.statistics import auc, average_precision, youden_oracle

LESIONS = ("epidural", "subdural", "intraparenchymal", "contusion", "subarachnoid", "intraventricular")


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that AUC and AP are about: groups normal and tbi with a known label."""
    return table[table["group"].isin(["normal", "tbi"]) & table["label"].isin(["0", "1"])]


def labels_and_scores(table: pd.DataFrame, column: str = "total") -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0 and 1, scores as float64."""
    return table["label"].astype(int).to_numpy(), table[column].to_numpy(float)


def both_classes(table: pd.DataFrame) -> bool:
    """Whether the rows hold normal and abnormal scans."""
    return set(table["label"]) >= {"0", "1"}


def of_lesion(table: pd.DataFrame, lesion: str) -> pd.DataFrame:
    """All normals, and the abnormal scans that show a lesion of this type, whatever else they show."""
    shows = table["lesions"].str.split(";").map(lambda found: lesion in found)
    return table[(table["label"] == "0") | shows]


def summarise(
    table: pd.DataFrame, others: dict[str, pd.DataFrame], set_aside: pd.DataFrame | None = None
) -> dict[str, Any]:
    """AUC and AP with n and interval: all, by cohort, by lesion type, and of the ``others`` on the same scans.

    Args:
        table: ``scan_id, cohort, label, group, lesions, image, feature, latent, total`` of the detector.
        others: tables of an earlier stage or of trivial detectors, by name.
        set_aside: ``group, label, verdict`` of test scans without a score. Because a person would have to look at
            them, ``rejected_flagged`` counts each as more abnormal than any scored scan.
    """
    table = ranked(table)
    metrics: dict[str, Any] = {"auc": {}, "ap": {}, "chance_ap": {}, "oracle_youden": {}, "set_aside": {}}

    def put(name: str, rows: pd.DataFrame, column: str = "total") -> None:
        if both_classes(rows):
            labels, scores = labels_and_scores(rows, column)
            metrics["auc"][name] = auc(labels, scores).as_json()
            metrics["ap"][name] = average_precision(labels, scores).as_json()
            metrics["chance_ap"][name] = float(labels.mean())

    put("all", table)
    for cohort, rows in table.groupby("cohort"):
        put(str(cohort), rows)
    for lesion in LESIONS:
        rows = of_lesion(table, lesion)
        if both_classes(rows):
            labels, scores = labels_and_scores(rows)
            metrics["ap"][lesion] = average_precision(labels, scores).as_json()
            metrics["chance_ap"][lesion] = float(labels.mean())
    for part in ("image", "feature", "latent"):
        if part in table:
            put(f"{part}_distance", table, part)
    if set_aside is not None and not set_aside.empty:
        names = set_aside["label"].map({"0": "normal", "1": "abnormal", "": "unknown"})
        for verdict, found in names.groupby(set_aside["verdict"]):
            metrics["set_aside"][str(verdict)] = found.value_counts().to_dict()
        put("rejected_flagged", pd.concat([table, ranked(set_aside).assign(total=table["total"].max() + 1)]))
    for name, other in others.items():
        put(name, ranked(other))
    if both_classes(table):
        metrics["oracle_youden"] = youden_oracle(*labels_and_scores(table))
    return metrics


def as_text(estimate: dict[str, Any]) -> str:
    """``0.81 [0.76, 0.86], 30 + 30`` for people."""
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"
