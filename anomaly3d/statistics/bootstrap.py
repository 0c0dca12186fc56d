"""Resampling of subjects, as whole-number weights on scans, and AUC and AP of many such draws at once.

All scans of a subject come along. A subject with any abnormal scan is of the abnormal class.
"""

from collections.abc import Callable

import numpy as np

DRAWS = 2000


def classes(labels: np.ndarray, subjects: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Number of each scan's subject ``(N,)``, and whether each subject is of the abnormal class ``(S,)``."""
    names, owner = np.unique(np.arange(len(labels)) if subjects is None else subjects, return_inverse=True)
    ill = np.zeros(len(names), bool)
    np.logical_or.at(ill, owner, labels == 1)
    return owner, ill


def subject_weights(
    labels: np.ndarray, subjects: np.ndarray | None, rng: np.random.Generator, draws: int = DRAWS
) -> np.ndarray:
    """How often each scan is in each draw of a bootstrap, ``(draws, N)``.

    A draw takes subjects with replacement within their class, so that it holds as many of each class as the study.

    Args:
        labels: ``(N,)`` 0 or 1.
        subjects: ``(N,)`` who was scanned; None for one scan a subject.
    """
    owner, ill = classes(labels, subjects)
    counts = np.zeros((draws, len(ill)))
    for kind in (False, True):
        members = np.flatnonzero(ill == kind)
        if len(members):
            counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), draws)
    return counts[:, owner]


def jackknife_error(
    labels: np.ndarray, subjects: np.ndarray | None, statistic: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, int]:
    """Standard error of a statistic from leaving out one subject at a time, and the size of the smaller class.

    Args:
        statistic: of weights ``(draws, N)``, ``(draws,)``. The error is NaN where it is undefined without a subject.
    """
    owner, ill = classes(labels, subjects)
    left = statistic((1 - np.eye(len(ill)))[:, owner])
    groups = [left[ill == kind] for kind in (False, True)]
    variance = sum((len(g) - 1) / len(g) * ((g - g.mean()) ** 2).sum() for g in groups if len(g))
    return float(np.sqrt(variance)), min(len(g) for g in groups)


def class_weights_by_score(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weight of abnormal and of normal scans at each distinct score, ascending: ``(draws, S)`` each."""
    distinct, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(len(distinct)))
    ordered, ill = weights[:, order], labels[order] == 1
    return np.add.reduceat(ordered * ill, starts, axis=1), np.add.reduceat(ordered * ~ill, starts, axis=1)


def weighted_auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUC of each draw ``(draws,)``, ties counted half; NaN where a draw lacks a class."""
    ill, well = class_weights_by_score(labels, scores, weights)
    below = np.cumsum(well, axis=1) - well / 2
    with np.errstate(invalid="ignore"):
        return (ill * below).sum(1) / (ill.sum(1) * well.sum(1))


def weighted_ap(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of each draw ``(draws,)``: precision at each threshold times the recall it adds."""
    ill, well = (w[:, ::-1] for w in class_weights_by_score(labels, scores, weights))
    hits, flagged = np.cumsum(ill, axis=1), np.cumsum(ill + well, axis=1)
    with np.errstate(invalid="ignore"):
        precision = np.where(flagged > 0, hits / np.maximum(flagged, 1e-12), 0)
        return (ill * precision).sum(1) / ill.sum(1)


def mean_interval(values: np.ndarray, subjects: np.ndarray | None = None, seed: int = 0) -> tuple[float, float, float]:
    """Mean of ``values (N,)`` and its 95 % percentile interval over subjects; of one subject NaN, for it is unknown."""
    if len(values if subjects is None else np.unique(subjects)) < 2:
        return float(np.mean(values)), float("nan"), float("nan")
    weights = subject_weights(np.ones(len(values)), subjects, np.random.default_rng(seed))
    draws = weights @ values / weights.sum(1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(np.mean(values)), float(low), float(high)
