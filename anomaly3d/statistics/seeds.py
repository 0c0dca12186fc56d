"""What several trainings with other seeds say: how far they lie apart, and two detectors seed by seed."""

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from anomaly3d.statistics.auc import Difference


def spread(values: np.ndarray) -> dict[str, object] | None:
    """Standard deviation of ``values (seeds,)`` with the 95 % interval of normal values, and n; None of one seed."""
    n = len(values)
    if n < 2:
        return None
    deviation = float(values.std(ddof=1))
    low, high = (deviation * float(np.sqrt((n - 1) / chi2.ppf(q, n - 1))) for q in (0.975, 0.025))
    return {"value": deviation, "ci95": [low, high], "n": n}


def paired_difference(gaps: np.ndarray) -> Difference:
    """Student's paired t test: the mean of ``gaps (seeds,)``, what one detector is better by with each seed.

    Where they are all the same nothing is known of their spread: [-1, 1] and p = 1.
    """
    n, value = len(gaps), float(gaps.mean())
    error = float(gaps.std(ddof=1)) / np.sqrt(n)
    if error < 1e-12:
        return Difference(value, -1.0, 1.0, 1.0)
    half = float(student.ppf(0.975, n - 1)) * error
    return Difference(value, value - half, value + half, float(2 * student.sf(abs(value) / error, n - 1)))
