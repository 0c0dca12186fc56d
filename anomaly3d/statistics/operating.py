"""What a threshold on a score does, and the best thresholds that there are. Shares come with interval and n."""

from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve, roc_curve

from anomaly3d.statistics.auc import share


def at_threshold(labels: np.ndarray, scores: np.ndarray, threshold: float, subjects: np.ndarray) -> dict[str, Any]:
    """Recall, specificity, accuracy and precision of ``scores >= threshold``; none of no (infinite) threshold."""
    names = ("recall", "specificity", "accuracy", "precision")
    if not np.isfinite(threshold):
        return {"threshold": None, **{name: share(np.zeros(0, bool), np.zeros(0)) for name in names}}
    flagged, ill = scores >= threshold, labels == 1
    return {
        "threshold": threshold,
        "recall": share(flagged[ill], subjects[ill]),
        "specificity": share(~flagged[~ill], subjects[~ill]),
        "accuracy": share(flagged == ill, subjects),
        "precision": share(ill[flagged], subjects[flagged]),
    }


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the largest recall + specificity - 1 *on these scans*, hence an oracle."""
    false_rate, true_rate, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = 1 + np.argmax((true_rate - false_rate)[1:])  # the first threshold is infinite and flags nothing
    return float(thresholds[best])


def f1_threshold(labels: np.ndarray, scores: np.ndarray) -> float:
    """The threshold with the largest F1 *on these scans*, hence an oracle."""
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[np.argmax(f1[:-1])])
