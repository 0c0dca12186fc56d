"""Where the anomaly is: an anomaly map against the true mask, inside the brain of one scan.

An anomaly map is larger where a voxel looks less healthy. Truth and map are ``(D, H, W)`` on one grid.
"""

from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

NEIGHBOURS = np.ones((3, 3, 3))  # voxels that touch at a corner belong to one lesion
SMALLEST = 3  # voxels of a lesion that counts; smaller ones are crumbs of resampling
FOUND = 0.1  # share of a lesion that must be flagged for it to count as found


def locate(anomaly: np.ndarray, truth: np.ndarray, brain: np.ndarray, threshold: float) -> dict[str, Any] | None:
    """Numbers of one scan, None where no true voxel lies in the brain.

    ``auroc`` and ``ap`` over the brain's voxels with ``chance_ap``, the share that is true; at the locked ``threshold``
    ``dice``, and how many ``lesions`` there are and are ``found``.
    """
    truth = truth & brain
    if not truth.any() or truth[brain].all():
        return None
    flagged = (anomaly >= threshold) & brain
    parts, count = ndimage.label(truth, NEIGHBOURS)
    sizes = ndimage.sum_labels(truth, parts, range(1, count + 1))
    shares = ndimage.mean(flagged, parts, range(1, count + 1))
    counted = np.asarray(sizes) >= SMALLEST
    labels, values = truth[brain], anomaly[brain]
    return {
        "auroc": float(roc_auc_score(labels, values)),
        "ap": float(average_precision_score(labels, values)),
        "chance_ap": float(labels.mean()),
        "dice": float(2 * (flagged & truth).sum() / (flagged.sum() + truth.sum())),
        "lesions": int(counted.sum()),
        "found": int((np.asarray(shares)[counted] >= FOUND).sum()),
    }


def false_parts(anomaly: np.ndarray, brain: np.ndarray, threshold: float) -> int:
    """How many separate places of a healthy scan are flagged, of ``SMALLEST`` voxels and more."""
    parts, count = ndimage.label((anomaly >= threshold) & brain, NEIGHBOURS)
    sizes = np.asarray(ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1)))
    return int((sizes >= SMALLEST).sum())
