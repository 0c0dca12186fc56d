"""Conformal p-values: how rare a score is among healthy calibration scans.

The guarantee: for a new healthy scan that is exchangeable with the calibration scans, P(p <= alpha) <= alpha, on
average over calibration sets and scans. It is marginal: one calibration set may do better or worse, and no group of
scans has it for itself. It is void where the new scans come from other scanners or people; recalibrate there.
"""

import numpy as np
from scipy.stats import false_discovery_control


def p_values(calibration: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """``(1 + number of calibration scores >= score) / (n + 1)`` of each score (Vovk et al. 2005; Bates et al. 2023)."""
    ordered = np.sort(calibration)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (len(ordered) + 1)


def threshold(calibration: np.ndarray, rate: float) -> float:
    """The number that a score must reach to be flagged: equivalent to ``p <= rate``.

    Infinite where there are too few calibration scans for the rate (fewer than ``1 / rate - 1``).
    """
    allowed = int(np.floor(rate * (len(calibration) + 1) + 1e-9)) - 1  # calibration scans that may lie at or above
    if allowed < 0:
        return float("inf")
    ordered = np.sort(calibration)[::-1]
    highest_not_allowed = ordered[allowed] if allowed < len(ordered) else -np.inf
    return float(np.nextafter(highest_not_allowed, np.inf))


def discoveries(p: np.ndarray, rate: float) -> np.ndarray:
    """Which scans of a batch are flagged so that about ``rate`` of the flagged are healthy (Benjamini, Hochberg 1995).

    Conformal p-values of one calibration set are positively dependent, which the procedure allows (Bates et al. 2023).
    """
    return false_discovery_control(p, method="bh") <= rate if len(p) else np.zeros(0, bool)
