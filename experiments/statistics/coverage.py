"""How often the intervals cover: many simulated studies with a known truth.

``python -m experiments.statistics.coverage`` writes ``coverage.json``: AUC and AP at the paper's two sample sizes (the
scores of normal and abnormal scans are normal distributions of one width, apart so that the AUC is .75), shares of
scans where subjects have several, and the false alarms of conformal thresholds against their nominal rate.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.integrate import quad
from scipy.stats import norm

from anomaly3d.statistics.auc import Z95, auc, average_precision, bootstrap_auc, on_logit, share, wilson
from anomaly3d.statistics.bootstrap import subject_weights, weighted_ap
from anomaly3d.statistics.conformal import p_values
from anomaly3d.system.progress import track

HERE = Path(__file__).parent
AUC = 0.75
SHIFT = np.sqrt(2) * norm.ppf(AUC)
SIZES = {"both cohorts": (142, 135), "physionet": (37, 33)}  # normal, abnormal scans of the paper
RATES = (0.05, 0.1)
CALIBRATION = (32, 100, 400, 1000)
SCANS, ALIKE = (1, 5), 0.6  # of a subject: from 1 to 4, and the correlation of what decides whether they are flagged


def true_ap(normal: int, abnormal: int) -> float:
    """AP of infinitely many scans at this prevalence: the mean precision over recall."""

    def precision(recall: float) -> float:
        threshold = SHIFT + norm.isf(recall)
        return abnormal * recall / (abnormal * recall + normal * norm.sf(threshold))

    return float(quad(precision, 0, 1)[0])


def ap_intervals(labels: np.ndarray, scores: np.ndarray, seed: int) -> dict[str, tuple[float, float]]:
    """The intervals tried: percentiles, BCa, and the logit scale with three standard errors."""
    rng = np.random.default_rng(seed)
    draws = weighted_ap(labels, scores, subject_weights(labels, None, rng))
    value = float(weighted_ap(labels, scores, np.ones((1, len(labels))))[0])
    without = weighted_ap(labels, scores, 1 - np.eye(len(labels)))  # jackknife
    gaps = without.mean() - without
    acceleration = (gaps**3).sum() / (6 * (gaps**2).sum() ** 1.5)
    bias = norm.ppf(np.clip(np.mean(draws < value), 1e-4, 1 - 1e-4))
    ends = [norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-Z95, Z95)]
    estimate = average_precision(labels, scores)
    return {
        "percentile": tuple(np.percentile(draws, [2.5, 97.5])),
        "BCa": tuple(np.percentile(draws, [100 * e for e in ends])),
        "logit, binomial error (Boyd 2013)": on_logit(value, np.sqrt(value * (1 - value) / labels.sum())),
        "logit, bootstrap error": on_logit(value, draws.std(ddof=1)),
        "logit, jackknife error, Student's t (ours)": (estimate.low, estimate.high),
    }


def cover(normal: int, abnormal: int, studies: int) -> dict[str, dict[str, float]]:
    """Share of studies whose interval holds the truth, and the intervals' mean width."""
    truth = {"auc": AUC, "ap": true_ap(normal, abnormal)}
    labels = np.r_[np.zeros(normal, int), np.ones(abnormal, int)]
    found: dict[str, list[tuple[float, float, float]]] = {}
    for study in track(range(studies), studies, f"{normal} + {abnormal} scans"):
        rng = np.random.default_rng((1, normal, study))
        scores = np.r_[rng.normal(0, 1, normal), rng.normal(SHIFT, 1, abnormal)]
        delong, bootstrap = auc(labels, scores), bootstrap_auc(labels, scores, seed=study)
        intervals = {
            "auc: DeLong on the logit scale (ours)": (delong.low, delong.high),
            "auc: bootstrap over subjects": (bootstrap.low, bootstrap.high),
            **{f"ap: {name}": ends for name, ends in ap_intervals(labels, scores, study).items()},
        }
        for name, (low, high) in intervals.items():
            aim = truth[name.split(":")[0]]
            found.setdefault(name, []).append((low <= aim <= high, high < aim, high - low))
    return {
        name: dict(zip(("covers", "all_below", "width"), np.round(np.mean(rows, 0), 4).tolist(), strict=True))
        for name, rows in found.items()
    }


def cover_share(subjects: int, truth: float, studies: int) -> dict[str, float]:
    """Share of studies whose interval holds the true share of flagged scans, with all scans as if of other subjects."""
    covered = []
    for study in range(studies):
        rng = np.random.default_rng((3, subjects, study))
        owner = np.repeat(np.arange(subjects), rng.integers(*SCANS, subjects))
        common, own = rng.normal(size=subjects)[owner], rng.normal(size=len(owner))
        hits = np.sqrt(ALIKE) * common + np.sqrt(1 - ALIKE) * own > norm.isf(truth)
        intervals = wilson(float(hits.mean()), len(hits)), share(hits, owner)["ci95"]
        covered.append([low <= truth <= high for low, high in intervals])  # type: ignore[misc]
    return dict(zip(("wilson", "ours"), np.round(np.mean(covered, 0), 4).tolist(), strict=True))


def false_alarms(calibration: int, studies: int, batch: int = 200) -> dict[str, dict[str, float]]:
    """Share of healthy scans flagged at a nominal rate: mean over studies, and the 2.5th and 97.5th percentile."""
    shares: dict[float, list[float]] = {rate: [] for rate in RATES}
    for study in range(studies):
        rng = np.random.default_rng((2, calibration, study))
        p = p_values(rng.normal(size=calibration), rng.normal(size=batch))
        for rate in RATES:
            shares[rate].append(float(np.mean(p <= rate)))
    return {
        str(rate): {
            "mean": round(float(np.mean(values)), 4),
            "range95": np.round(np.percentile(values, [2.5, 97.5]), 4).tolist(),
        }
        for rate, values in shares.items()
    }


def main() -> None:
    """Simulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    studies = parser.parse_args().studies
    table = {
        "studies": studies,
        "true_ap": {name: round(true_ap(*size), 4) for name, size in SIZES.items()},
        "coverage": {name: cover(*size, studies) for name, size in SIZES.items()},
        "shares": {f"{n} subjects, {p:.0%}": cover_share(n, p, studies) for n in (15, 30, 60) for p in (0.1, 0.5)},
        "conformal": {str(n): false_alarms(n, studies) for n in CALIBRATION},
    }
    (HERE / "coverage.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
