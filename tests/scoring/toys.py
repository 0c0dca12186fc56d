"""Healthy statistics and three scans, small enough to work out by hand."""

import numpy as np
import pandas as pd

from anomaly3d.scoring.anomaly_maps import Healthy

SHAPE = (12, 10, 9)


def usual(spread, medians=None, name="residual"):
    """Healthy residuals of mean 0, everywhere in the brain."""
    full = np.ones(SHAPE)
    return Healthy(10, 10 * full, {name: 0 * full}, {name: 10 * spread**2 * full}, medians or {})


def distances(scans="abc"):
    return pd.DataFrame({"scan_id": list(scans), "total": 3.0, "image": [1.0, 2.0, 3.0], "feature": [2.0, 1.0, 0.0]})
