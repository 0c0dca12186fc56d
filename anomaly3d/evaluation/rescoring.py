"""Anomaly scores other than A(x), from stored reconstructions and distances, without running a network.

All work inside the brain, with the residual r = x - G(E(x)) in units of [-1, 1]. Each split has one task: what is
healthy is measured on training scans, a score is chosen on validation scans, its threshold set on calibration scans.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.evaluation.bootstrap import weighted_auc
from anomaly3d.evaluation.statistics import compare_auc
from anomaly3d.files import written_whole
from anomaly3d.parallel import run_parallel

DISTANCES = ("total", "image", "feature", "latent")  # what detectors may give
SMOOTHING = 1.0  # voxels, sigma
LARGEST = 0.01  # share of the brain's voxels in the top-k scores
KAPPAS = (0.1, 10.0)  # weights of the feature distance; 0 is ``image``, infinity ``feature``
SPREAD_SMOOTHING = 2.0  # voxels, sigma, of the healthy spread
BEYOND_CHANCE = 0.05  # p-value below which a score is better than A(x) on validation scans
FLOOR = 0.02  # of the healthy spread: 1.2 HU


def load(path: str | Path) -> np.ndarray:
    """Voxels of a NIfTI file as float32."""
    return np.asarray(nib.nifti1.Nifti1Image.from_filename(path).dataobj, np.float32)


@dataclass(frozen=True)
class Maps:
    """Files of a scan from which its residual is made."""

    scan_id: str
    image: str
    reconstruction: str
    brain_mask: str

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Residual ``(D, H, W)`` and brain mask."""
        return load(self.image) - load(self.reconstruction), load(self.brain_mask) > 0


def maps_of(rows: pd.DataFrame, folder: Path) -> list[Maps]:
    """The files of prepared scans whose reconstructions lie in ``folder``."""
    return [
        Maps(r["scan_id"], r["image"], str(folder / "reconstruction" / f"{r['scan_id']}.nii.gz"), r["brain_mask"])
        for r in rows.to_dict("records")
    ]


@dataclass(frozen=True)
class Healthy:
    """What is usual in healthy training scans.

    ``mean`` and ``spread`` of the residual at each voxel ``(D, H, W)``; ``medians`` of the distances.
    """

    mean: np.ndarray
    spread: np.ndarray
    medians: dict[str, float]

    @classmethod
    def measure(cls, maps: Iterable[Maps], table: pd.DataFrame) -> "Healthy":
        """From reconstructions and distances of the training scans; smoothed, because they are few."""
        count, total, square = 0, np.zeros(1), np.zeros(1)
        for scan in maps:
            residual = scan.read()[0].astype(np.float64)
            count, total, square = count + 1, total + residual, square + residual**2
        mean = total / count
        variance = ndimage.gaussian_filter((square / count - mean**2).clip(min=0), SPREAD_SMOOTHING)
        smoothed = ndimage.gaussian_filter(mean, SPREAD_SMOOTHING).astype(np.float32)
        spread = np.maximum(np.sqrt(variance), FLOOR).astype(np.float32)
        return cls(smoothed, spread, {c: float(table[c].median()) for c in DISTANCES if c in table})

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        with written_whole(path) as beside:
            np.savez_compressed(beside, mean=self.mean, spread=self.spread, **self.medians)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Healthy":
        """Read what ``save`` wrote."""
        with np.load(path) as stored:
            medians = {name: float(stored[name]) for name in DISTANCES if name in stored}
            return cls(stored["mean"], stored["spread"], medians)


def smooth(residual: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Gaussian mean of the residual over the brain's voxels only, zero outside."""
    weight = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTHING)
    return ndimage.gaussian_filter(residual * brain, SMOOTHING) / np.maximum(weight, 1e-3) * brain


def anomaly_maps(residual: np.ndarray, brain: np.ndarray, healthy: Healthy) -> dict[str, np.ndarray]:
    """Signed maps ``(D, H, W)``: the smoothed residual, and the same in units of the healthy spread at each voxel."""
    return {
        "residual": smooth(residual, brain),
        "standardised": smooth((residual - healthy.mean) / healthy.spread, brain),
    }


def top(values: np.ndarray) -> float:
    """Mean of the largest ``LARGEST`` share of ``values (N,)``."""
    count = max(1, round(LARGEST * len(values)))
    return float(np.partition(values, len(values) - count)[-count:].mean())


def scores_from_maps(scan: Maps, healthy: Healthy) -> dict[str, Any]:
    """``scan_id`` and the scores that need the residual map of one scan."""
    residual, brain = scan.read()
    inside = residual[brain]
    smoothed, z = (m[brain] for m in anomaly_maps(residual, brain, healthy).values())
    return {
        "scan_id": scan.scan_id,
        "masked": float(np.mean(inside**2)),
        "top": top(np.abs(inside)),
        "smoothed": float(np.mean(smoothed**2)),
        "smoothed_top": top(np.abs(smoothed)),
        "brighter": float(np.mean(smoothed.clip(min=0) ** 2)),
        "brighter_top": top(smoothed),
        "darker": float(np.mean(smoothed.clip(max=0) ** 2)),
        "darker_top": top(-smoothed),
        "standardised": float(np.mean(z**2)),
        "standardised_top": top(np.abs(z)),
    }


def rescore(table: pd.DataFrame, maps: list[Maps], healthy: Healthy, workers: int, what: str) -> pd.DataFrame:
    """``table`` of distances with a column for every other score."""
    found = table.copy()
    if {"image", "feature"} <= set(table):
        for kappa in KAPPAS:
            found[f"kappa_{kappa:g}"] = table["image"] + kappa * table["feature"]
        found["balanced"] = sum(table[c] / healthy.medians[c] for c in ("image", "feature"))
    if not maps:
        return found
    rows = pd.DataFrame(run_parallel(scores_from_maps, [(scan, healthy) for scan in maps], workers, what))
    return found.merge(rows, on="scan_id", how="left", validate="one_to_one")


def score_names(table: pd.DataFrame) -> list[str]:
    """The columns of a rescored table that are scores, A(x) first; manifest columns are text."""
    return sorted((str(c) for c in table if pd.api.types.is_float_dtype(table[c])), key=lambda name: name != "total")


def choose(validation: pd.DataFrame, pseudo: pd.DataFrame) -> tuple[str, dict[str, float]]:
    """The score that best tells validation scans from the same scans with something pasted in, and the AUC of each.

    Another score takes the place of A(x) only where it is better beyond chance (paired test over subjects, 5 %): few
    validation scans cannot rank many scores.
    """
    labels = np.r_[np.zeros(len(validation), int), np.ones(len(pseudo), int)]
    subjects = np.r_[validation["subject_id"], pseudo["subject_id"]]
    scores = {name: np.r_[validation[name], pseudo[name]].astype(float) for name in score_names(validation)}
    ones = np.ones((1, len(labels)))
    ranking = {name: float(weighted_auc(labels, values, ones)[0]) for name, values in scores.items()}
    ranking = dict(sorted(ranking.items(), key=lambda item: -item[1]))
    best = next(iter(ranking))
    difference = compare_auc(labels, scores[best], scores["total"], subjects)
    return (best if difference.p < BEYOND_CHANCE else "total"), ranking
