"""AUC, AP and paired tests from tables of scores."""

from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.evaluation.statistics import (
    Estimate,
    auc,
    average_precision,
    bootstrap_auc,
    bootstrap_difference,
    compare_auc,
    holm,
)

LESIONS = ("epidural", "subdural", "intraparenchymal", "contusion", "subarachnoid", "intraventricular")


def ranked(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that AUC and AP are about: groups normal and tbi with a known label."""
    return table[table["group"].isin(["normal", "tbi"]) & table["label"].isin(["0", "1"])]


def labels_and_scores(table: pd.DataFrame, column: str = "total") -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0 and 1, scores as float64."""
    return table["label"].astype(int).to_numpy(), table[column].to_numpy(float)


def subjects_of(table: pd.DataFrame) -> np.ndarray:
    """Who was scanned, for intervals that do not take two scans of a person for two people."""
    return table["subject_id"].to_numpy()


def both_classes(table: pd.DataFrame) -> bool:
    """Whether the rows hold normal and abnormal scans."""
    return set(table["label"]) >= {"0", "1"}


def of_lesion(table: pd.DataFrame, lesion: str) -> pd.DataFrame:
    """All normals, and the abnormal scans that show a lesion of this type, whatever else they show."""
    shows = table["lesions"].str.split(";").map(lambda found: lesion in found)
    return table[(table["label"] == "0") | shows]


def auc_of(table: pd.DataFrame, column: str = "total") -> Estimate:
    """AUC of the rows of a table."""
    return auc(*labels_and_scores(table, column), subjects_of(table))


def ap_of(table: pd.DataFrame, column: str = "total") -> Estimate:
    """Average precision of the rows of a table."""
    return average_precision(*labels_and_scores(table, column), subjects_of(table))


def summarise(
    table: pd.DataFrame,
    others: dict[str, pd.DataFrame],
    set_aside: pd.DataFrame | None = None,
    selected: str | None = None,
) -> dict[str, Any]:
    """AUC and AP with n and interval: all, by cohort, by lesion type, and of the ``others`` on the same scans.

    Args:
        table: ``scan_id, subject_id, cohort, label, group, lesions, total`` and more scores of the detector.
        others: tables of an earlier stage or of other detectors, by name.
        set_aside: ``subject_id, group, label, verdict`` of test scans without a score. Because a person would have to
            look at them, ``rejected_flagged`` counts each as more abnormal than any scored scan.
        selected: the score that was chosen without a label, where it is not ``total``.
    """
    table = ranked(table)
    metrics: dict[str, Any] = {"auc": {}, "ap": {}, "chance_ap": {}, "set_aside": {}, "compared": {}}

    def put(name: str, rows: pd.DataFrame, column: str = "total") -> None:
        if both_classes(rows):
            bootstrap = bootstrap_auc(*labels_and_scores(rows, column), subjects_of(rows))
            metrics["auc"][name] = {**auc_of(rows, column).as_json(), "bootstrap95": [bootstrap.low, bootstrap.high]}
            metrics["ap"][name] = ap_of(rows, column).as_json()
            metrics["chance_ap"][name] = float((rows["label"] == "1").mean())

    put("all", table)
    if selected:
        put("selected", table, selected)
    for cohort, rows in table.groupby("cohort"):
        put(str(cohort), rows)
    for lesion in LESIONS:
        rows = of_lesion(table, lesion)
        if both_classes(rows):
            metrics["ap"][lesion] = ap_of(rows).as_json()
            metrics["chance_ap"][lesion] = float((rows["label"] == "1").mean())
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
    metrics["compared"] = compare(table, {n: t["total"] for n, t in aligned(table, others).items()})
    return metrics


def aligned(table: pd.DataFrame, others: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The other tables' rows of the scans in ``table``, in its order; those that lack one are left out."""
    found = {}
    for name, other in others.items():
        rows = other.set_index("scan_id").reindex(table["scan_id"])
        if rows["total"].notna().all():
            found[name] = rows
    return found


def compare(table: pd.DataFrame, others: dict[str, pd.Series], column: str = "total") -> dict[str, Any]:
    """This detector's AUC minus that of each other on the same scans: DeLong and bootstrap, Holm over all of them."""
    if not both_classes(table) or not others:
        return {}
    labels, scores = labels_and_scores(table, column)
    subjects = subjects_of(table)
    found: dict[str, Any] = {}
    for name, other in others.items():
        values = other.to_numpy(float)
        bootstrap = bootstrap_difference(labels, scores, values, subjects)
        found[name] = {
            **compare_auc(labels, scores, values, subjects).as_json(),
            "bootstrap95": [bootstrap.low, bootstrap.high],
            "bootstrap_p": bootstrap.p,
        }
    for entry, p in zip(found.values(), holm([f["p"] for f in found.values()]), strict=True):
        entry["p_holm"] = p
    return found


def as_text(estimate: dict[str, Any]) -> str:
    """``0.81 [0.76, 0.86]`` for people."""
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"
