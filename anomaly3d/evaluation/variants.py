"""Anomaly scores other than A(x), from stored reconstructions and distances, without running a network.

All work inside the brain, with the residual r = x - G(E(x)) in units of [-1, 1]. ``total`` (A(x), kappa as trained) and
the detector's own distances are among them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

SMOOTHING = 1.0  # voxels, sigma
LARGEST = 0.01  # share of the brain's voxels in the top-k scores
KAPPAS = (0.1, 10.0)  # weights of the feature distance; 0 is ``image``, infinity ``feature``
SPREAD_SMOOTHING = 2.0  # voxels, sigma, of the healthy spread
FLOOR = 0.02  # of the healthy spread: 1.2 HU


@dataclass(frozen=True)
class HealthyResidual:
    """Mean and spread of healthy residuals at each voxel, ``(D, H, W)``."""

    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def measure(cls, residuals: list[np.ndarray]) -> "HealthyResidual":
        """From residuals of healthy scans that no score is judged on; smoothed, because they are few."""
        mean = np.mean(residuals, 0)
        square = np.mean([(r - mean) ** 2 for r in residuals], 0)
        spread = np.sqrt(ndimage.gaussian_filter(square, SPREAD_SMOOTHING))
        return cls(ndimage.gaussian_filter(mean, SPREAD_SMOOTHING), np.maximum(spread, FLOOR))

    def standardised(self, residual: np.ndarray) -> np.ndarray:
        """(r - mean) / spread."""
        return (residual - self.mean) / self.spread

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        np.savez_compressed(path, mean=self.mean.astype(np.float32), spread=self.spread.astype(np.float32))

    @classmethod
    def load(cls, path: Path) -> "HealthyResidual":
        """Read what ``save`` wrote."""
        with np.load(path) as stored:
            return cls(stored["mean"], stored["spread"])


def smooth(residual: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Gaussian mean of the residual over the brain's voxels only, zero outside."""
    weight = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTHING)
    mean = ndimage.gaussian_filter(residual * brain, SMOOTHING) / np.maximum(weight, 1e-3)
    return mean * brain


def top(values: np.ndarray) -> float:
    """Mean of the largest ``LARGEST`` share of ``values (N,)``."""
    count = max(1, round(LARGEST * len(values)))
    return float(np.partition(values, len(values) - count)[-count:].mean())


def from_maps(residual: np.ndarray, brain: np.ndarray, healthy: HealthyResidual) -> dict[str, float]:
    """The scores of one residual map, ``(D, H, W)`` each."""
    inside = residual[brain]
    smoothed = smooth(residual, brain)[brain]
    z = smooth(healthy.standardised(residual), brain)[brain]
    return {
        "masked": float(np.mean(inside**2)),
        "top": top(np.abs(inside)),
        "smoothed": float(np.mean(smoothed**2)),
        "smoothed_top": top(np.abs(smoothed)),
        "brighter": float(np.mean(smoothed.clip(min=0) ** 2)),
        "brighter_top": top(smoothed),
        "darker": float(np.mean(smoothed.clip(max=0) ** 2)),
        "standardised": float(np.mean(z**2)),
        "standardised_top": top(np.abs(z)),
        "standardised_brighter_top": top(z),
    }


def from_distances(table: pd.DataFrame, healthy: pd.DataFrame) -> pd.DataFrame:
    """Other weights of the feature distance; ``healthy`` scans' medians make the two distances of one size."""
    found = table[[c for c in ("total", "image", "feature", "latent") if c in table]].copy()
    if {"image", "feature"} <= set(table):
        for kappa in KAPPAS:
            found[f"kappa_{kappa:g}"] = table["image"] + kappa * table["feature"]
        found["balanced"] = sum(table[c] / healthy[c].median() for c in ("image", "feature"))
    return found
