"""AUC, average precision and their intervals. Scores: higher is more abnormal; labels: 1 abnormal, 0 normal."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata
from sklearn.metrics import average_precision_score, roc_curve

Z95 = float(norm.ppf(0.975))
BOOTSTRAPS = 2000


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


def auc(labels: np.ndarray, scores: np.ndarray) -> Estimate:
    """Area under the ROC curve with the interval of DeLong et al. 1988 on the logit scale.

    Where DeLong's variance is zero or undefined (a perfect AUC, a class of one scan), Wilson's interval stands in with
    the size of the smaller class, which is cautious.

    Raises:
        ValueError: only one class.
    """
    positive, negative = scores[labels == 1], scores[labels == 0]
    m, n = len(positive), len(negative)
    if not m or not n:
        raise ValueError("an AUC needs normal and abnormal scans")
    ranks = rankdata(np.concatenate([positive, negative]))
    v10 = (ranks[:m] - rankdata(positive)) / n
    v01 = 1 - (ranks[m:] - rankdata(negative)) / m
    value = float(v10.mean())
    if 0 < value < 1 and min(m, n) > 1:
        variance = v10.var(ddof=1) / m + v01.var(ddof=1) / n
        logit, spread = np.log(value / (1 - value)), np.sqrt(variance) / (value * (1 - value))
        low, high = (float(1 / (1 + np.exp(-(logit + s * Z95 * spread)))) for s in (-1, 1))
    else:
        low, high = wilson(value, min(m, n))
    return Estimate(value, low, high, n, m)


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927)."""
    square = Z95**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = np.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def average_precision(labels: np.ndarray, scores: np.ndarray, seed: int = 0) -> Estimate:
    """Average precision with a percentile interval of a bootstrap stratified by class."""
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([rng.choice(positive, len(positive)), rng.choice(negative, len(negative))])
        values.append(average_precision_score(labels[drawn], scores[drawn]))
    low, high = np.percentile(values, [2.5, 97.5])
    value = float(average_precision_score(labels, scores))
    return Estimate(value, float(low), float(high), len(negative), len(positive))


def rates(true_positive: int, positive: int, true_negative: int, negative: int) -> dict[str, float]:
    """Recall, specificity and accuracy in [0, 1] from counts."""
    return {
        "recall": true_positive / positive,
        "specificity": true_negative / negative,
        "accuracy": (true_positive + true_negative) / (positive + negative),
    }


def youden_oracle(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """The threshold with the largest recall + specificity - 1 *on these scans*, hence an oracle, and its rates."""
    false_rate, true_rate, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = 1 + np.argmax((true_rate - false_rate)[1:])  # the first threshold is infinite and flags nothing
    threshold = float(thresholds[best])
    flagged = scores >= threshold
    positive, negative = labels == 1, labels == 0
    counts = rates(
        int((flagged & positive).sum()),
        int(positive.sum()),
        int((~flagged & negative).sum()),
        int(negative.sum()),
    )
    return {"threshold": threshold, **counts}
