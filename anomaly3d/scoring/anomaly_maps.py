"""From a scan's findings to anomaly maps, and what is usual in them in healthy scans.

A raw map is ``(D, H, W)`` and signed: the residual r = x - reconstruction in units of [-1, 1], or a map of the
detector's own. All work inside the brain.
"""

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.errors import UserError
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring.combination import Reference
from anomaly3d.system.files import written_whole

RECONSTRUCTION, MAPS = "reconstruction", "maps"  # folders of a detector's volumes
RESIDUAL = "residual"
LOGITS = ("contrast",)  # maps of detectors that are logits
SMOOTHING = 1.0  # voxels, sigma
POOLED = 1.5  # voxels, sigma, over which healthy mean and spread are pooled
USUAL = 0.5  # share of healthy scans that have brain at a voxel, from which it counts
FLOOR = 0.02  # of the healthy spread: 1.2 HU
BESIDE = 2  # voxels around what is denser than blood, which share its voxels and are smoothed together with it
AGED = 20  # healthy people of known age that it takes to say how the spread follows age
AT_MOST = 2.0  # standard deviations of their ages: older and younger scans are taken to be so old


@dataclass(frozen=True)
class RawMaps:
    """Raw maps of a scan by name and its brain mask, ``(D, H, W)`` each; ``age`` in years, None where unknown.

    ``image`` is the scan itself in [-1, 1], by which dense places are known; None: there are none.
    """

    values: dict[str, np.ndarray]
    brain: np.ndarray
    age: float | None = None
    image: np.ndarray | None = None


@dataclass(frozen=True)
class ScanMaps:
    """Files of a scan from which its raw maps are made; ``reconstruction`` is empty where there is none."""

    scan_id: str
    image: str
    reconstruction: str
    brain_mask: str
    own: dict[str, str] = field(default_factory=dict)  # files of the detector's own maps by name
    age: float | None = None  # years

    def voxel_ml(self) -> float:
        """Of the prepared grid, in MNI space."""
        return float(abs(np.linalg.det(nib.nifti1.Nifti1Image.from_filename(self.image).affine))) / 1000

    def read(self) -> RawMaps:
        """What the files hold."""
        image = voxels(self.image)
        values = {RESIDUAL: image - voxels(self.reconstruction)} if self.reconstruction else {}
        values |= {name: voxels(path) for name, path in self.own.items()}
        return RawMaps(values, voxels(self.brain_mask) > 0, self.age, image)


def maps_of(rows: pd.DataFrame, folder: Path) -> list[ScanMaps]:
    """The files of prepared scans whose findings lie in ``folder``; none where the detector has neither kind of map."""
    own = sorted(path.name for path in (folder / MAPS).glob("*"))
    reconstructs = (folder / RECONSTRUCTION).is_dir()
    if not own and not reconstructs:
        return []
    return [
        ScanMaps(
            row["scan_id"],
            row["image"],
            str(folder / RECONSTRUCTION / f"{row['scan_id']}.nii.gz") if reconstructs else "",
            row["brain_mask"],
            {name: str(folder / MAPS / name / f"{row['scan_id']}.nii.gz") for name in own},
            float(row["age"]) if row.get("age") else None,
        )
        for row in rows.to_dict("records")
    ]


@dataclass(frozen=True)
class Healthy:
    """What is usual in healthy scans that the detector did not learn from: residuals of training scans are too small.

    Sums over ``count`` scans at each voxel ``(D, H, W)``: ``brains``, how many are judged there; ``total`` and
    ``square`` of each raw map of these. ``medians`` are those of the parts of the score. ``ageing`` says by map
    how the spread follows age, None that it does not; ``reference`` what the scans' scores are, where several are
    combined; ``densest`` is the intensity in [-1, 1] from which a voxel is not judged, None: all are.
    """

    count: int
    brains: np.ndarray
    total: dict[str, np.ndarray]
    square: dict[str, np.ndarray]
    medians: dict[str, float]
    ageing: "dict[str, Ageing] | None" = None
    reference: Reference | None = None
    densest: float | None = None

    @classmethod
    def measure(
        cls, maps: Iterable[ScanMaps], table: pd.DataFrame, parts: Sequence[str], densest: float | None = None
    ) -> "Healthy":
        """From the maps and scores of healthy scans."""
        medians = {part: float(table[part].median()) for part in parts}
        found = cls(0, np.zeros(()), {}, {}, medians, densest=densest)
        for scan in maps:
            found = found.plus(scan.read(), 1)
        return found

    def plus(self, raw: RawMaps, sign: int) -> "Healthy":
        """With one scan more; ``sign=-1``: without that scan, which is among those it was measured on."""
        judged = self.judged(raw)
        inside = {name: np.where(judged, values, 0).astype(np.float64) for name, values in raw.values.items()}
        return replace(
            self,
            count=self.count + sign,
            brains=self.brains + sign * judged.astype(np.float64),
            total={name: self.total.get(name, 0) + sign * values for name, values in inside.items()},
            square={name: self.square.get(name, 0) + sign * values**2 for name, values in inside.items()},
        )

    def judged(self, raw: RawMaps) -> np.ndarray:
        """Where a scan is judged, ``(D, H, W)`` bool: its brain, without what is too dense for blood and ``BESIDE``."""
        if self.densest is None or raw.image is None:
            return raw.brain
        dense = raw.brain & (raw.image > self.densest)
        return raw.brain & ~ndimage.binary_dilation(dense, iterations=BESIDE)

    def without(self, scans: Iterable[ScanMaps]) -> "Healthy":
        """What is usual in the others of the scans that it was measured on."""
        healthy = self
        for scan in scans:
            healthy = healthy.plus(scan.read(), -1)
        return healthy

    @cached_property
    def usual(self) -> np.ndarray:
        """Where most of the scans are judged."""
        return self.brains > USUAL * self.count

    @cached_property
    def statistics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean and spread of each raw map, float32; pooled over neighbours, because the scans are few."""
        weight = np.maximum(ndimage.gaussian_filter(self.brains, POOLED), 1e-3 * max(self.count, 1))
        found = {}
        for name, total in self.total.items():
            mean = ndimage.gaussian_filter(total, POOLED) / weight
            square = self.square[name] - 2 * mean * total + mean**2 * self.brains
            spread = np.sqrt((ndimage.gaussian_filter(square, POOLED) / weight).clip(min=0))
            found[name] = mean.astype(np.float32), np.maximum(spread, FLOOR).astype(np.float32)
        return found

    def growth(self, name: str, age: float | None) -> float:
        """By what the spread of a map at this age is larger than at the mean age; 1 where the age is unknown."""
        return 1.0 if self.ageing is None or age is None else self.ageing[name].growth(age)

    def save(self, path: Path) -> None:
        """Write what ``load`` reads."""
        arrays = {f"total/{n}": t for n, t in self.total.items()} | {f"square/{n}": s for n, s in self.square.items()}
        arrays |= {f"median/{n}": np.array(m) for n, m in self.medians.items()}
        arrays = {n: a.astype(np.float32) for n, a in (arrays | {"brains": self.brains}).items()}
        if self.ageing is not None:
            arrays |= {f"ageing/{n}": np.array([a.slope, a.mean, a.spread]) for n, a in self.ageing.items()}
        if self.reference is not None:  # in full, to be compared with scores to their last digit
            arrays |= {f"reference/{n}": s for n, s in self.reference.scores.items()}
            arrays["weights"] = self.reference.weights
        if self.densest is not None:
            arrays["densest"] = np.array(self.densest)
        with written_whole(path) as beside:
            np.savez_compressed(beside, count=np.array(self.count), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Healthy":
        """Read what ``save`` wrote.

        Raises:
            UserError: it is damaged, holds other things than numbers, or an earlier version wrote it.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = dict(stored)
        except (OSError, EOFError, ValueError, TypeError, AttributeError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is damaged: run 'python -m anomaly3d.evaluate' again") from error
        if "count" not in arrays:
            raise UserError(f"{path} was written by an earlier version: run 'python -m anomaly3d.evaluate' again")

        def under(kind: str) -> dict[str, np.ndarray]:
            return {n.removeprefix(f"{kind}/"): a for n, a in arrays.items() if n.startswith(f"{kind}/")}

        medians = {n: float(m) for n, m in under("median").items()}
        ageing = {n: Ageing(*map(float, numbers)) for n, numbers in under("ageing").items()} or None
        reference = Reference(under("reference"), arrays["weights"]) if "weights" in arrays else None
        densest = float(arrays["densest"]) if "densest" in arrays else None
        sums = int(arrays["count"]), arrays["brains"], under("total"), under("square")
        return cls(*sums, medians, ageing, reference, densest)


@dataclass(frozen=True)
class Ageing:
    """How the spread of a map follows age: a healthy brain strays the further from the mean the older it is.

    ``slope`` is that of the logarithm of a scan's mean square where it is judged over its age, a year; ``mean`` and
    ``spread`` are those of the ages that it was measured on, in years.
    """

    slope: float
    mean: float
    spread: float

    def growth(self, age: float) -> float:
        """exp(slope (age - mean) / 2), no further from the mean than ``AT_MOST`` spreads."""
        most = AT_MOST * self.spread
        return float(np.exp(self.slope / 2 * np.clip(age - self.mean, -most, most)))

    @classmethod
    def measure(cls, maps: Sequence[ScanMaps], subjects: Sequence[str], healthy: Healthy) -> "dict[str, Ageing]":
        """By map, from healthy scans where ``healthy`` judges them, each subject counting as one.

        Raises:
            UserError: fewer than ``AGED`` subjects of known age, or they are all of one.
        """
        known = [(scan, subject) for scan, subject in zip(maps, subjects, strict=True) if scan.age is not None]
        there = pd.Series([subject for _, subject in known], dtype=str)
        ages = np.array([scan.age for scan, _ in known], float)
        if there.nunique() < AGED or np.ptp(ages) < 1:
            raise UserError(
                f"by_age=true takes {AGED} healthy people of different known ages to measure by, and there are "
                f"{there.nunique()}: fill in the column age of the manifest, or leave by_age=false"
            )
        weights = 1 / there.map(there.value_counts()).to_numpy(float)
        mean = float(np.average(ages, weights=weights))
        spread = float(np.sqrt(np.average((ages - mean) ** 2, weights=weights)))
        read = [(raw.values, healthy.judged(raw)) for raw in (scan.read() for scan, _ in known)]
        found = {}
        for name in read[0][0]:
            level = np.array([np.log(np.mean(values[name][judged] ** 2) + FLOOR**2) for values, judged in read])
            found[name] = cls(float(np.average((ages - mean) * level, weights=weights)) / spread**2, mean, spread)
        return found


def smooth(raw: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Gaussian mean of a map over the brain's voxels only, zero outside."""
    weight = ndimage.gaussian_filter(brain.astype(np.float32), SMOOTHING)
    return ndimage.gaussian_filter(raw * brain, SMOOTHING) / np.maximum(weight, 1e-3) * brain


def strength(name: str, signed: np.ndarray) -> np.ndarray:
    """How abnormal each voxel of the anomaly map ``name`` is: its size, or of ``LOGITS`` itself, as far below 0 is
    healthy."""
    return signed if name in LOGITS else np.abs(signed)


def standardised_name(raw: str) -> str:
    """What the standardised map of a raw one is called."""
    return "standardised" if raw == RESIDUAL else f"{raw}_standardised"


def anomaly_maps(raw: RawMaps, healthy: Healthy) -> dict[str, np.ndarray]:
    """Signed maps ``(D, H, W)``: each raw one smoothed, and the same in units of the healthy spread at each voxel.

    The latter is 0 in the scan's median, because CT numbers of scanners differ, and where brain is unusual or not
    judged.
    """
    found = {}
    where = healthy.judged(raw) & healthy.usual
    for name, values in raw.values.items():
        found[name] = smooth(values, raw.brain)
        mean, spread = healthy.statistics[name]
        z = (values - mean) / (spread * healthy.growth(name, raw.age))
        found[standardised_name(name)] = smooth(z - (np.median(z[where]) if where.any() else 0), where)
    return found


def standardised_maps(raw: RawMaps, healthy: Healthy) -> dict[str, np.ndarray]:
    """Of ``anomaly_maps`` those in units of the healthy spread."""
    maps = anomaly_maps(raw, healthy)
    return {standardised_name(name): maps[standardised_name(name)] for name in raw.values}
