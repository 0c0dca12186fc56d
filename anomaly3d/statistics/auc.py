"""AUC, average precision, their intervals and tests. Scores: higher is more abnormal; labels: 1 abnormal, 0 normal.

``subjects`` names who was scanned where a subject has several scans; without it every scan is a subject of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from anomaly3d.statistics.bootstrap import DRAWS, jackknife_error, subject_weights, weighted_ap, weighted_auc

Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval and the scans it rests on."""

    value: float
    low: float
    high: float
    n_normal: int
    n_abnormal: int

    def as_json(self) -> dict[str, object]:
        """The schema of ``metrics.json``."""
        return {
            "value": self.value,
            "ci95": [self.low, self.high],
            "n_normal": self.n_normal,
            "n_abnormal": self.n_abnormal,
        }


@dataclass(frozen=True)
class Difference:
    """A number of one detector minus that of another on the same scans, with 95 % interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float

    def as_json(self) -> dict[str, object]:
        """The schema of ``metrics.json``."""
        return {"value": self.value, "ci95": [self.low, self.high], "p": self.p}


def auc_covariance(
    labels: np.ndarray, scores: np.ndarray, subjects: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """AUCs of K detectors on the same scans and their covariance: ``scores (N, K)`` -> ``(K,)``, ``(K, K)``.

    DeLong et al. 1988; where subjects repeat, Obuchowski 1997 sums the placement values within each subject. The two
    agree when none does.

    Raises:
        ValueError: only one class.
    """
    ill = labels == 1
    m, n = int(ill.sum()), int((~ill).sum())
    if not m or not n:
        raise ValueError("an AUC needs normal and abnormal scans")
    ranks = rankdata(scores, axis=0)
    placement = np.empty_like(ranks)
    placement[ill] = (ranks[ill] - rankdata(scores[ill], axis=0)) / n
    placement[~ill] = 1 - (ranks[~ill] - rankdata(scores[~ill], axis=0)) / m
    value = placement[ill].mean(0)
    names, owner = np.unique(np.arange(len(labels)) if subjects is None else subjects, return_inverse=True)
    deviations = []
    for members in (ill, ~ill):
        sums = np.zeros((len(names), scores.shape[1]))
        np.add.at(sums, owner[members], placement[members] - value)
        deviations.append(sums)
    abnormal, normal = deviations
    with_abnormal, with_normal = (len(np.unique(owner[members])) for members in (ill, ~ill))

    def unbiased(count: int) -> float:
        return count / (count - 1) if count > 1 else np.inf

    with np.errstate(invalid="ignore"):
        cross = abnormal.T @ normal * (unbiased(len(names)) / (m * n))
        own = abnormal.T @ abnormal * (unbiased(with_abnormal) / m**2)
        other = normal.T @ normal * (unbiased(with_normal) / n**2)
    return value, own + other + cross + cross.T


def on_logit(value: float, error: float, quantile: float = Z95) -> tuple[float, float]:
    """Interval of a share in (0, 1) with a standard error, symmetric on the logit scale; 95 % by default."""
    logit, width = np.log(value / (1 - value)), quantile * error / (value * (1 - value))
    low, high = (float(1 / (1 + np.exp(-(logit + s * width)))) for s in (-1, 1))
    return low, high


def fewest_subjects(labels: np.ndarray, subjects: np.ndarray | None) -> int:
    """How many subjects the class has that has fewer of them; a class without scans does not count."""
    owners = np.arange(len(labels)) if subjects is None else np.asarray(subjects)
    return min(len(np.unique(owners[labels == label])) for label in np.unique(labels))


def auc(labels: np.ndarray, scores: np.ndarray, subjects: np.ndarray | None = None) -> Estimate:
    """Area under the ROC curve with the interval of ``auc_covariance`` on the logit scale.

    Where that variance is zero or undefined (a perfect AUC, a class of one scan), Wilson's interval stands in with
    the number of subjects of the smaller class, which is cautious.

    Raises:
        ValueError: only one class.
    """
    values, covariance = auc_covariance(labels, scores[:, None], subjects)
    value, variance = float(values[0]), float(covariance[0, 0])
    m, n = int((labels == 1).sum()), int((labels == 0).sum())
    if 0 < value < 1 and np.isfinite(variance) and variance > 0 and min(m, n) > 1:
        low, high = on_logit(value, np.sqrt(variance))
    else:
        low, high = wilson(value, fewest_subjects(labels, subjects))
    return Estimate(value, low, high, n, m)


def bootstrap_auc(
    labels: np.ndarray, scores: np.ndarray, subjects: np.ndarray | None = None, seed: int = 0
) -> Estimate:
    """Area under the ROC curve with the percentile interval of a bootstrap over subjects, stratified by class.

    Args:
        scores: ``(N,)``, or ``(seeds, N)`` of a detector trained with several seeds: then the value is the mean AUC and
            each draw also takes seeds with replacement, because another study would have another run of the training.

    Where draws cannot differ (a perfect AUC, a class of one subject) Wilson's interval stands in, as in ``auc``.
    """
    rng = np.random.default_rng(seed)
    value, draws = drawn_auc(labels, np.atleast_2d(scores), subject_weights(labels, subjects, rng), rng)
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    fewest = fewest_subjects(labels, subjects)
    if fewest < 2 or low == high:
        low, high = wilson(value, fewest)
    return Estimate(value, float(low), float(high), int((labels == 0).sum()), int((labels == 1).sum()))


def drawn_auc(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Mean AUC over seeds, ``scores (seeds, N)``, and that of each draw of subjects and seeds, ``(draws,)``."""
    of_all = np.concatenate([weighted_auc(labels, row, np.ones((1, len(labels)))) for row in scores])
    draws = np.stack([weighted_auc(labels, row, weights) for row in scores])
    chosen = rng.integers(0, len(scores), draws.shape)
    return float(of_all.mean()), np.take_along_axis(draws, chosen, 0).mean(0)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    square = Z95**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def independent_trials(hits: np.ndarray, subjects: np.ndarray) -> float:
    """As how many independent trials ``hits (N,)`` count where subjects have several.

    N over the design effect (Kish 1965): the variance of the share with whole subjects as units, over that of N
    independent trials. Without variance to measure (all hits alike) it is the number of subjects, which is cautious.
    """
    names, owner = np.unique(subjects, return_inverse=True)
    n, m, value = len(hits), len(names), float(np.mean(hits))
    variance = value * (1 - value) / max(n - 1, 1)
    if m == n or m == 1 or variance == 0:
        return m
    of_subjects = np.bincount(owner, hits - value)
    return n / max(m / (m - 1) * float((of_subjects**2).sum()) / n**2 / variance, 1.0)


def share(hits: np.ndarray, subjects: np.ndarray) -> dict[str, object]:
    """Mean of booleans ``(N,)`` with Wilson's 95 % interval for ``independent_trials``, and n; the schema of shares."""
    if not len(hits):
        return {"value": None, "ci95": None, "n": 0}
    value = float(np.mean(hits))
    return {"value": value, "ci95": list(wilson(value, independent_trials(hits, subjects))), "n": len(hits)}


def average_precision(labels: np.ndarray, scores: np.ndarray, subjects: np.ndarray | None = None) -> Estimate:
    """Average precision; interval on the logit scale with the jackknife's standard error over subjects.

    Student's t for the smaller class takes the place of the normal quantile. Of the intervals tried in
    ``experiments/statistics`` this one covers best at the paper's two sample sizes. Where the error is zero or
    undefined (a perfect AP, one subject of a class), Wilson's interval stands in, as for ``auc``.
    """
    error, smaller = jackknife_error(labels, subjects, lambda weights: weighted_ap(labels, scores, weights))
    value = float(weighted_ap(labels, scores, np.ones((1, len(labels))))[0])
    m, n = int((labels == 1).sum()), int((labels == 0).sum())
    if 0 < value < 1 and error > 0 and smaller > 1:
        low, high = on_logit(value, error, float(student.ppf(0.975, smaller - 1)))
    else:
        low, high = wilson(value, fewest_subjects(labels, subjects))
    return Estimate(value, low, high, n, m)


def compare_auc(
    labels: np.ndarray, scores: np.ndarray, others: np.ndarray, subjects: np.ndarray | None = None
) -> Difference:
    """Paired test of two detectors' AUCs on the same scans (DeLong; Obuchowski where subjects repeat).

    Where its variance is undefined or zero (a class of one scan, perfect scores) nothing is known: [-1, 1] and p = 1;
    scores that rank all scans alike do not differ.
    """
    values, covariance = auc_covariance(labels, np.stack([scores, others], 1), subjects)
    value, contrast = float(values[0] - values[1]), np.array([1, -1])
    variance = float(contrast @ covariance @ contrast)
    if not np.isfinite(variance) or (variance < 1e-24 and not ranked_alike(scores, others)):
        return Difference(value, -1.0, 1.0, 1.0)
    spread = np.sqrt(max(variance, 0.0))
    p = float(2 * norm.sf(abs(value) / spread)) if spread > 1e-12 else 1.0
    low, high = np.clip([value - Z95 * spread, value + Z95 * spread], -1, 1).tolist()
    return Difference(value, low, high, p)


def of_two_shares(share: float, other: float, trials: float) -> tuple[float, float]:
    """The 95 % interval of a difference of two proportions from Wilson's of each (Newcombe 1998, method 10)."""
    (low, high), (other_low, other_high) = wilson(share, trials), wilson(other, trials)
    below, above = np.hypot(share - low, other_high - other), np.hypot(high - share, other - other_low)
    return max(share - other - float(below), -1.0), min(share - other + float(above), 1.0)


def ranked_alike(scores: np.ndarray, others: np.ndarray) -> bool:
    """Whether two detectors rank the scans in one order, ``(N,)`` or, each pair of trainings, ``(seeds, N)``."""
    return np.array_equal(rankdata(scores, axis=-1), rankdata(others, axis=-1))


def bootstrap_difference(
    labels: np.ndarray,
    scores: np.ndarray,
    others: np.ndarray,
    subjects: np.ndarray | None = None,
    seed: int = 0,
) -> Difference:
    """Paired test of two detectors' AUCs by a bootstrap over subjects crossed with training seeds.

    Args:
        scores, others: ``(seeds, N)`` of the same scans, or ``(N,)`` for one seed; an AUC is the mean over seeds, and
            every draw takes subjects and seeds with replacement. The detectors need not have as many seeds.

    Of a class of one subject every draw is the same, so nothing is known, as in ``compare_auc``: [-1, 1] and p = 1.
    Where draws cannot differ (perfect scores) the interval is that of two shares (Newcombe 1998). Draws without a scan
    of one class do not count, and no p-value is smaller than that of a permutation of so few subjects could be.
    """
    rng = np.random.default_rng(seed)
    weights = subject_weights(labels, subjects, rng)
    (value, draws), (other, other_draws) = (
        drawn_auc(labels, np.atleast_2d(table), weights, rng) for table in (scores, others)
    )
    fewest = fewest_subjects(labels, subjects)
    if fewest < 2:
        return Difference(value - other, -1.0, 1.0, 1.0)
    gaps = draws - other_draws
    gaps = gaps[np.isfinite(gaps)]
    alike = np.shape(scores) == np.shape(others) and ranked_alike(scores, others)
    low, high = np.percentile(gaps, [2.5, 97.5])
    if high - low < 1e-12 and not alike:
        low, high = of_two_shares(value, other, fewest)
    beyond = max(min(np.mean(gaps <= 0), np.mean(gaps >= 0)), 1 / (2 * DRAWS), 1 / comb(2 * fewest, fewest))
    return Difference(value - other, float(low), float(high), float(min(1.0, 2 * beyond)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests (Holm 1979), in their order."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(1, np.maximum.accumulate(np.asarray(p_values, float)[order] * factors))
    result = np.empty(len(p_values))
    result[order] = adjusted
    return result.tolist()
