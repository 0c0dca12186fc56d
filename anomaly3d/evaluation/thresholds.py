"""What a threshold on a score does: recall, false alarms, whom they hit. Shares come with interval and n."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.evaluation.metrics import (
    both_classes,
    kinds_in,
    labels_and_scores,
    of_lesion,
    ranked,
    whole_percent,
)
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.statistics.auc import auc, share
from anomaly3d.statistics.conformal import TOLERANCE
from anomaly3d.statistics.operating import at_threshold, f1_threshold, youden_threshold

RATES = (0.05, 0.1)  # false-positive rates at which conformal p-values are held against what happened
VOLUMES = (0, 2, 5, 15, 50, np.inf)  # ml
AGES = (0, 40, 60, 75, np.inf)  # years


def operating_points(
    table: pd.DataFrame, scores: Sequence[str], calibrations: Sequence[Calibration]
) -> list[dict[str, Any]]:
    """A row for every threshold of some scores: that locked on calibration scans, if any, and the oracles.

    Where all scans are of one kind no oracle, accuracy or precision means anything, and a locked threshold still does.
    """
    rows = ranked(table)
    both, subjects = both_classes(rows), rows["subject_id"].to_numpy()
    if rows.empty:
        return []
    locked, points = {calibration.score: calibration for calibration in calibrations}, []
    for score in scores:
        labels, values = labels_and_scores(rows, score)
        rules = {locked_rule(locked.get(score)): locked[score].threshold if score in locked else np.inf}
        if both:
            rules["oracle: Youden on the test scans"] = youden_threshold(labels, values)
            rules["oracle: F1 on the test scans"] = f1_threshold(labels, values)
        for rule, threshold in rules.items():
            found = at_threshold(labels, values, threshold, subjects)
            if not both:
                found |= dict.fromkeys(("accuracy", "precision"), share(np.zeros(0, bool), np.zeros(0)))
            value = float(threshold) if np.isfinite(threshold) else None
            points.append({"score": score, "rule": rule, **found, "threshold": value})
    return points


def locked_rule(calibration: Calibration | None) -> str:
    """What the locked threshold of a score is, in words."""
    if calibration is None:
        return "locked: no threshold possible, there are no calibration scans"
    rate = whole_percent(calibration.rate)
    if not calibration.possible:
        return f"locked: no threshold possible, {rate} takes {calibration.fewest} calibration scans"
    return f"locked: {rate} of healthy scans may be flagged, by {len(calibration.scores)} calibration scans"


def between(values: pd.Series, edges: tuple[float, ...], unit: str) -> pd.Series:
    """Bands of numbers that are text in the table; empty where there is none."""
    names = [f"{a:g} to {b:g} {unit}" if b < np.inf else f"over {a:g} {unit}" for a, b in pairwise(edges)]
    return pd.cut(pd.to_numeric(values, errors="coerce"), edges, right=False, labels=names).astype(object).fillna("")


def share_of(rows: pd.DataFrame, flagged: pd.Series) -> dict[str, Any]:
    """Share of some rows that are flagged."""
    return share(flagged[rows.index].to_numpy(), rows["subject_id"].to_numpy())


def recall_by(table: pd.DataFrame, calibration: Calibration) -> dict[str, Any]:
    """Share of abnormal scans that the locked threshold flags, by lesion type and by lesion volume."""
    rows = ranked(table)
    ill = rows[rows["label"] == "1"]
    flagged = ill[calibration.score] >= calibration.threshold
    found: dict[str, Any] = {"lesion": {}, "volume": {}}
    for lesion in kinds_in(ill):
        found["lesion"][lesion] = share_of(of_lesion(ill, lesion), flagged)
    for band, members in ill.groupby(between(ill["lesion_ml"], VOLUMES, "ml"), sort=False):
        if band:
            found["volume"][str(band)] = share_of(members, flagged)
    order = list(between(pd.Series([str(a) for a in VOLUMES[:-1]]), VOLUMES, "ml"))
    found["volume"] = {band: found["volume"][band] for band in order if band in found["volume"]}
    return found


def false_positives_by(table: pd.DataFrame, calibration: Calibration) -> dict[str, Any]:
    """Share of healthy test scans that the locked threshold flags: all, by site, age band and sex."""
    rows = ranked(table)
    well = rows[rows["label"] == "0"]
    flagged = well[calibration.score] >= calibration.threshold
    found: dict[str, Any] = {"all": share_of(well, flagged)}
    strata = {"site": well["site"], "age": between(well["age"], AGES, "years"), "sex": well["sex"]}
    for name, values in strata.items():
        groups = {str(v): share_of(m, flagged) for v, m in well.groupby(values) if v}
        if len(groups) > 1:
            found[name] = groups
    return found


def conformal_rates(table: pd.DataFrame, calibration: Calibration) -> list[dict[str, Any]]:
    """What became of the promise that at most ``nominal`` of the healthy scans have so small a p-value, by site."""
    rows = ranked(table)
    well = rows[rows["label"] == "0"]
    found = []
    for site, members in well.groupby("site"):
        p = calibration.p_values(members[calibration.score].to_numpy(float))
        subjects = members["subject_id"].to_numpy()
        found += [
            {"site": str(site), "nominal": rate, "realised": share(p <= rate + TOLERANCE, subjects)} for rate in RATES
        ]
    return found


def ratio(a: float, b: float) -> float | None:
    """a / b of two positive numbers, else None."""
    return float(a / b) if a > 0 and b > 0 else None


def site_shift(table: pd.DataFrame, score: str) -> dict[str, Any]:
    """How far healthy scores of other sites lie from those of the site with the most scans.

    ``auc`` is the chance that a healthy scan of the other site scores higher: 0.5 where scores do not know the site.
    """
    rows = ranked(table)
    well = rows[(rows["label"] == "0") & (rows["site"] != "")]
    counts = well["site"].value_counts()
    if len(counts) < 2:
        return {}
    home = str(counts.index[0])
    found: dict[str, Any] = {}
    for site in counts.index[1:]:
        both = pd.concat([well[well["site"] == home], well[well["site"] == site]])
        labels = (both["site"] == site).astype(int).to_numpy()
        scores = both[score].to_numpy(float)
        own, other = scores[labels == 0], scores[labels == 1]
        estimate = auc(labels, scores, both["subject_id"].to_numpy())
        found[str(site)] = {
            "against": home,
            "auc": estimate.value,
            "ci95": [estimate.low, estimate.high],
            "n": [len(own), len(other)],
            "median_ratio": ratio(np.median(other), np.median(own)),
        }
    return found
