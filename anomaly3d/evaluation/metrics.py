"""AUC, AP and paired tests from tables of scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.scans.manifest import LESIONS
from anomaly3d.statistics.auc import (
    Estimate,
    auc,
    average_precision,
    bootstrap_auc,
    bootstrap_difference,
    compare_auc,
    holm,
)

LAYERED, LAYERED_NAME = "layered", "layered_name"  # the score that was chosen for a detector without labels; its name


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


def kinds_in(table: pd.DataFrame) -> list[str]:
    """The kinds of finding that the rows name, the paper's first."""
    named = {kind for found in table["lesions"] for kind in found.split(";")}
    return [kind for kind in LESIONS if kind in named]


def auc_of(table: pd.DataFrame, column: str = "total") -> Estimate:
    """AUC of the rows of a table."""
    return auc(*labels_and_scores(table, column), subjects_of(table))


def ap_of(table: pd.DataFrame, column: str = "total") -> Estimate:
    """Average precision of the rows of a table."""
    return average_precision(*labels_and_scores(table, column), subjects_of(table))


def result(rows: pd.DataFrame, column: str = "total") -> dict[str, Any] | None:
    """AUC and AP of some rows with n and interval, and the AP of chance; None where a class is missing."""
    rows = ranked(rows)
    if not both_classes(rows):
        return None
    bootstrap = bootstrap_auc(*labels_and_scores(rows, column), subjects_of(rows))
    return {
        "auc": {**auc_of(rows, column).as_json(), "bootstrap95": [bootstrap.low, bootstrap.high]},
        "ap": ap_of(rows, column).as_json(),
        "chance_ap": float((rows["label"] == "1").mean()),
    }


def present(results: dict[str, dict[str, Any] | None]) -> dict[str, dict[str, Any]]:
    """Those that are there."""
    return {name: found for name, found in results.items() if found}


def summarise(
    table: pd.DataFrame,
    others: dict[str, pd.DataFrame],
    set_aside: pd.DataFrame | None = None,
    selected: str | None = None,
    parts: Sequence[str] = (),
) -> dict[str, Any]:
    """``results`` of a detector: all, by cohort, by part of its score, and of the ``others`` on the same scans, by
    their own score and by the one chosen for each of them; AUC and AP by ``lesion`` type, by A(x) and by the chosen
    score; ``set_aside``; and what it is ``compared`` with, likewise.

    Args:
        table: ``scan_id, subject_id, cohort, label, group, lesions, total`` and more scores of the detector.
        others: tables of an earlier stage or of other detectors, by name.
        set_aside: ``subject_id, group, label, verdict`` of test scans without a score. Because a person would have to
            look at them, ``rejected_flagged`` counts each as more abnormal than any scored scan.
        selected: the score that was chosen without a label, where it is not ``total``.
        parts: columns of scores that stand beside ``total``.
    """
    table = ranked(table)
    lesions = {lesion: rows for lesion in kinds_in(table) if both_classes(rows := of_lesion(table, lesion))}

    def by_lesion(score: str) -> dict[str, Any]:
        return {
            lesion: {
                "auc": auc_of(rows, score).as_json(),
                "ap": ap_of(rows, score).as_json(),
                "chance_ap": float((rows["label"] == "1").mean()),
            }
            for lesion, rows in lesions.items()
        }

    results: dict[str, Any] = {
        "all": result(table),
        "selected": {**(result(table, selected) or {}), "score": selected}
        if selected and both_classes(table)
        else None,
        "cohort": present({str(cohort): result(rows) for cohort, rows in table.groupby("cohort")}),
        "cohort_selected": present({str(cohort): result(rows, selected) for cohort, rows in table.groupby("cohort")})
        if selected
        else {},
        "part": present({part: result(table, part) for part in parts}),
        "rejected_flagged": None,
        "other": present({name: result(other) for name, other in others.items()}),
        "other_selected": {
            name: {**found, "score": str(other[LAYERED_NAME].iloc[0])}
            for name, other in others.items()
            if LAYERED in other and (found := result(other, LAYERED))
        },
    }
    counts: dict[str, Any] = {}
    if set_aside is not None and not set_aside.empty:
        names = set_aside["label"].map({"0": "normal", "1": "abnormal", "": "unknown"})
        counts = {str(v): found.value_counts().to_dict() for v, found in names.groupby(set_aside["verdict"])}
        flagged = pd.concat([table, ranked(set_aside).assign(total=table["total"].max() + 1)])
        results["rejected_flagged"] = result(flagged)
    return {
        "results": results,
        "lesion": by_lesion("total"),
        "lesion_selected": by_lesion(selected) if selected else {},
        "set_aside": counts,
        "compared": compare(table, {n: t["total"] for n, t in aligned(table, others).items()}),
        "compared_selected": compare(
            table,
            {n: t[LAYERED] for n, t in aligned(table, others).items() if LAYERED in t},
            selected or "total",
        ),
    }


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


def whole_percent(share: float) -> str:
    """``10 %``."""
    return f"{100 * share:.0f} %"


def as_text(estimate: dict[str, Any]) -> str:
    """``0.81 [0.76, 0.86]`` for people; of one subject without an interval."""
    if estimate["ci95"] is None:
        return f"{estimate['value']:.3f}, one subject"
    low, high = estimate["ci95"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"
