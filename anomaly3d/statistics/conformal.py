"""Conformal p-values: how rare a score is among healthy calibration scans.

The guarantee: for a new healthy scan that is exchangeable with the calibration scans, P(p <= alpha) <= alpha, on
average over calibration sets and scans. It is marginal: one calibration set may do better or worse, and no group of
scans has it for itself. It is void where the new scans come from other scanners or people; recalibrate there.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import false_discovery_control

TOLERANCE = 1e-9  # of sums of weights


def weights_of(subjects: np.ndarray) -> np.ndarray:
    """A weight for each scan ``(N,)``: one over the number of scans of its subject."""
    _, owner, count = np.unique(subjects, return_inverse=True, return_counts=True)
    return 1 / count[owner]


def p_values(
    calibration: np.ndarray, scores: np.ndarray, weights: Sequence[float] | np.ndarray | None = None
) -> np.ndarray:
    """``(1 + weight of calibration scores >= score) / (1 + weight of all)`` of each score; NaN of NaN.

    Each scan weighs 1 (Vovk et al. 2005; Bates et al. 2023), or, where subjects repeat, ``weights_of`` them: then
    subjects are what must be exchangeable (Lee, Barber, Willett 2023).
    """
    order = np.argsort(calibration)
    ordered = (np.ones(len(calibration)) if weights is None else np.asarray(weights))[order]
    at_least = np.r_[np.cumsum(ordered[::-1])[::-1], 0.0]
    place = np.searchsorted(calibration[order], scores, side="left")
    found = (1 + at_least[place]) / (1 + at_least[0])
    return np.where(np.isnan(scores), np.nan, found)  # no other sum of the weights: rounding must not lead above 1


def threshold(calibration: np.ndarray, rate: float, weights: Sequence[float] | np.ndarray | None = None) -> float:
    """The number that a score must reach to be flagged: equivalent to ``p <= rate``.

    Infinite where there are too few calibration subjects for the rate (fewer than ``1 / rate - 1``).
    """
    order = np.argsort(calibration)[::-1]
    ordered = (np.ones(len(calibration)) if weights is None else np.asarray(weights))[order]
    allowed = rate * (1 + ordered.sum()) - 1 + TOLERANCE  # weight of calibration scans that may lie at or above
    if allowed < 0:
        return float("inf")
    too_many = np.flatnonzero(np.cumsum(ordered) > allowed)
    highest_not_allowed = calibration[order][too_many[0]] if len(too_many) else -np.inf
    return float(np.nextafter(highest_not_allowed, np.inf))


def discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """Which scans of a batch are flagged so that about ``rate`` of the flagged are healthy (Benjamini, Hochberg 1995).

    Conformal p-values of one calibration set are positively dependent, which the procedure allows (Bates et al. 2023).
    """
    return false_discovery_control(p, method="bh") <= rate if len(p) else np.zeros(0, bool)
