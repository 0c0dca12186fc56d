"""Thresholds from healthy calibration scans, stored with the model, and what they say about a new scan."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import ndimage

from anomaly3d.errors import UserError
from anomaly3d.runs.folder import Trained
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps, anomaly_maps, standardised_maps, strength
from anomaly3d.scoring.familiarity import INPUTS
from anomaly3d.scoring.scan_scores import of_one_subject, rescore
from anomaly3d.statistics.conformal import TOLERANCE, p_values, threshold, weights_of
from anomaly3d.system.files import sha256, written_whole
from anomaly3d.system.workers import Workers, run_in_threads

NEIGHBOURS = np.ones((3, 3, 3))  # voxels that touch at a corner hang together
BRAIN = 800.0  # ml: less than any adult's
OWN = "own"  # the calibration split of the run's own cohort
CHOICE = "choice.json"  # beside the calibrations: which score they belong to, and how it was chosen
TOTAL = "total"  # a folder beside them: that of A(x), where another score was chosen
NO_SITES = (OWN, Path(CHOICE).stem, Path(INPUTS).stem)  # files beside the calibrations, which no site may be called


@dataclass(frozen=True)
class Calibration:
    """One score of one detector on the healthy scans of one site.

    ``rate`` is the share of healthy scans that may be flagged. ``voxel_thresholds`` belong to the absolute anomaly
    maps: in the median calibration scan, ``voxel_ml`` ml of brain (in MNI space) lie above. ``weights`` are those of
    ``scores`` where subjects have several, else empty. ``cluster_masses`` are, by map, those of the largest cluster of
    each calibration scan, in the order of ``scores``.
    """

    site: str
    score: str
    rate: float
    scores: list[float]
    voxel_ml: float
    voxel_thresholds: dict[str, float]
    weights: list[float] = field(default_factory=list)
    cluster_masses: dict[str, list[float]] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """The score from which a scan is flagged; infinite where there are too few calibration scans for the rate."""
        return threshold(np.array(self.scores), self.rate, self.weights or None)

    @property
    def possible(self) -> bool:
        """Whether there are enough calibration scans for a threshold at this rate."""
        return bool(np.isfinite(self.threshold))

    @property
    def fewest(self) -> int:
        """How many calibration subjects a threshold at this rate takes."""
        return int(np.ceil(1 / self.rate - TOLERANCE)) - 1

    def flags(self, scores: pd.Series) -> pd.Series | None:
        """Which scores reach the threshold; None where no threshold is possible."""
        return scores >= self.threshold if self.possible else None

    def p_values(self, scores: np.ndarray) -> np.ndarray:
        """How rare each score is among healthy scans."""
        return p_values(np.array(self.scores), scores, self.weights or None)

    def cluster_p_values(self, name: str, masses: np.ndarray) -> np.ndarray:
        """How rare each mass is as that of a healthy scan's largest cluster; NaN where that was not measured.

        So of a new healthy scan, any cluster at all has p at most alpha with a chance of alpha.
        """
        healthy = self.cluster_masses.get(name)
        if not healthy:
            return np.full(len(masses), np.nan)
        return p_values(np.array(healthy), masses, self.weights or None)

    def without_clusters(self) -> "Calibration":
        """For scans unlike those that were measured: no p-value of a cluster holds for them."""
        return replace(self, cluster_masses={})

    def save(self, path: Path, model: str, usual: Path) -> None:
        """Write what ``load`` reads, with the threshold for readers.

        Args:
            model: digest of the trained model whose scores these are.
            usual: the ``healthy_file`` by which they were standardised.
        """
        made_with = {"model": model, "healthy": sha256(usual)}
        with written_whole(path) as beside:
            threshold = self.threshold if self.possible else None
            beside.write_text(json.dumps({**made_with, **asdict(self), "threshold": threshold}, indent=1))

    @classmethod
    def load(cls, path: Path, trained: Trained, usual: Path) -> "Calibration":
        """Read what ``save`` wrote of this very model with this very ``healthy_file``.

        Raises:
            UserError: the file is not one, or another model's, or belongs to other statistics.
        """
        again = f"calibrate {path.stem} again; {OWN} by 'python -m anomaly3d.evaluate'"
        try:
            stored = json.loads(path.read_text())
            stored.pop("threshold")
            its_model, its_healthy = stored.pop("model", None), stored.pop("healthy", None)
            found = cls(**stored)
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {again}") from error
        if its_model != trained.digest():
            raise UserError(f"{path} holds thresholds of another model than {trained.folder.model} is: {again}")
        if its_healthy not in (None, sha256(usual)):  # earlier versions kept none
            raise UserError(f"{path} and {usual} are of two calibrations, one of which was interrupted: {again}")
        return found


def check_rate(key: str, rate: float) -> None:
    """Refuse a rate that is not between 0 and 1.

    Raises:
        UserError: names the key.
    """
    if not isinstance(rate, int | float) or not 0 < rate < 1:
        raise UserError(f"{key} must be a share between 0 and 1, for example 0.1, not {rate}")


def check_volume(key: str, ml: float) -> None:
    """Refuse a volume that is not above 0, or that of a whole brain.

    Raises:
        UserError: names the key.
    """
    if isinstance(ml, bool) or not isinstance(ml, int | float) or not 0 < ml < BRAIN:
        raise UserError(f"{key} must be a volume above 0 and below {BRAIN:g} ml, for example 10, not {ml}")


def check_batch(batch: object) -> None:
    """Refuse what is no number of scans to score at a time.

    Raises:
        UserError: says what it must be.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise UserError(f"batch must be a whole number of scans, at least 1, not {batch!r}")


def calibration_folder(stage: Path) -> Path:
    """Where the calibrations of a trained phase lie."""
    return stage / "calibration"


def healthy_file(stage: Path, site: str) -> Path:
    """What is usual in the anomaly maps of healthy scans, those of a site among them, beside its calibration."""
    return calibration_folder(stage) / f"{site}.npz"


def sites_of(stage: Path) -> list[str]:
    """Whose healthy scans have been measured: ``OWN`` and sites."""
    files = [path for path in calibration_folder(stage).glob("*.json") if not path.name.startswith(".")]
    return sorted(path.stem for path in files if path.stem not in NO_SITES[1:])


def load_calibration(trained: Trained, site: str) -> tuple[Healthy, Calibration] | None:
    """What a model's scores were on healthy scans of a site, None where nothing was measured of any.

    Raises:
        UserError: other sites have been calibrated, but not this one, or another model has.
    """
    stage = trained.folder.path
    folder = calibration_folder(stage)
    known = sites_of(stage)
    if site not in known and (known or site != OWN):
        raise UserError(
            f"site={site}: {folder} holds calibrations of {', '.join(known) or 'no site'}; make one from healthy scans "
            f"with 'python -m anomaly3d.calibrate {trained.named} site={site} root=...'"
        )
    if site not in known:
        return None
    if not (usual := healthy_file(stage, site)).exists():
        raise UserError(f"{usual} is missing: calibrate {site} again; {OWN} by 'python -m anomaly3d.evaluate'")
    return Healthy.load(usual), Calibration.load(folder / f"{site}.json", trained, usual)


def clusters_of(z: np.ndarray, level: float, voxel_ml: float) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of one sign of a standardised map ``(D, H, W)`` that reach ``level``: labels int32, 1 for the one of the
    largest mass and so on, 0 elsewhere; and their masses.

    The mass is the sum of what |z| has above ``level`` over the cluster, in healthy spreads times ml: large counts, and
    so does strong (Bullmore et al. 1999).
    """
    labels, count = np.zeros(z.shape, np.int32), 0
    for signed in (z, -z):
        parts, number = ndimage.label(signed >= level, NEIGHBOURS)
        labels = np.where(parts > 0, parts + count, labels).astype(np.int32)
        count += number
    mass = np.bincount(labels.ravel(), (np.abs(z) - level).ravel(), count + 1)[1:] * voxel_ml
    order = np.argsort(-mass, kind="stable")
    rank = np.zeros(count + 1, np.int32)
    rank[order + 1] = np.arange(1, count + 1)
    return rank[labels], mass[order]


def largest_masses(
    scan: ScanMaps, healthy: Healthy, levels: dict[str, float], left_out: Sequence[ScanMaps]
) -> dict[str, float]:
    """Of one scan, the mass of the largest cluster of each map that is in healthy spreads, 0 where there is none.

    Args:
        left_out: scans that ``healthy`` was measured on and that do not count here: those of the scan's subject.
    """
    maps, ml = standardised_maps(scan.read(), healthy.without(left_out)), scan.voxel_ml()
    return {name: float(clusters_of(z, levels[name], ml)[1].max(initial=0.0)) for name, z in maps.items()}


def voxel_quantiles(scan: ScanMaps, healthy: Healthy, ml: float, left_out: Sequence[ScanMaps]) -> dict[str, float]:
    """The level that ``ml`` of the brain exceed in each anomaly map of one scan; ``left_out`` as above."""
    raw = scan.read()
    rate = min(ml / (raw.brain.sum() * scan.voxel_ml()), 1.0)
    maps = anomaly_maps(raw, healthy.without(left_out))
    return {name: float(np.quantile(strength(name, m)[raw.brain], 1 - rate)) for name, m in maps.items()}


def calibrate(
    site: str,
    scores: list[str],
    table: pd.DataFrame,
    maps: list[ScanMaps],
    healthy: Healthy,
    rate: float,
    voxel_ml: float,
    workers: Workers,
    measured_on: Mapping[str, Sequence[ScanMaps]] | None = None,
) -> list[Calibration]:
    """One a score, from table and maps of healthy scans that neither trained the detector nor chose its score.

    Args:
        measured_on: as for ``rescore``.
    """
    left_out = [(measured_on or {}).get(scan.scan_id, ()) for scan in maps]
    jobs = [(scan, healthy, voxel_ml, without) for scan, without in zip(maps, left_out, strict=True)]
    levels = pd.DataFrame(run_in_threads(voxel_quantiles, jobs, workers, "voxel thresholds"))
    medians = {str(name): float(value) for name, value in levels.median().items()}
    again = [(scan, healthy, medians, without) for scan, without in zip(maps, left_out, strict=True)]
    found = pd.DataFrame(run_in_threads(largest_masses, again, workers, "clusters"), [scan.scan_id for scan in maps])
    heaviest = {str(name): values.to_dict() for name, values in found.items()}
    made = []
    for score in scores:
        ordered = table.sort_values(score)
        weights = weights_of(ordered["subject_id"].to_numpy())
        several = weights.tolist() if (weights < 1).any() else []
        masses = {name: [of[scan_id] for scan_id in ordered["scan_id"]] for name, of in heaviest.items()}
        made.append(Calibration(site, score, rate, ordered[score].tolist(), voxel_ml, medians, several, masses))
    return made


def refuse_unknown_ages(maps: Sequence[ScanMaps]) -> None:
    """What is said of scans by their age does not hold for scans of unknown age, nor the other way round.

    Raises:
        UserError: scans to calibrate with, of which some are of unknown age.
    """
    if unknown := [scan.scan_id for scan in maps if scan.age is None]:
        raise UserError(
            f"the healthy spread follows age, and {len(unknown)} of {len(maps)} calibration scans have none (the first "
            f"is {unknown[0]}): give the column age of a manifest, or evaluate the run with by_age=false"
        )


def calibrate_anew(
    site: str,
    scores: list[str],
    table: pd.DataFrame,
    maps: list[ScanMaps],
    healthy: Healthy,
    rate: float,
    voxel_ml: float,
    workers: Workers,
) -> tuple[Healthy, list[Calibration]]:
    """``calibrate`` on healthy scans of another site, after they joined those that say what is usual.

    Each of them is scored by those of all other subjects, as a new patient's will be. Returns what is usual now, too.

    Args:
        table: the detector's own scores.
        healthy: what was usual without them; how the spread follows age stays as it is there, because what differs
            between sites is not age.

    Raises:
        UserError: a scan of unknown age, where the spread follows age.
    """
    if healthy.ageing is not None:
        refuse_unknown_ages(maps)
    for scan in maps:
        healthy = healthy.plus(scan.read(), 1)
    left_out = of_one_subject(table, maps)
    rescored = rescore(table, maps, healthy, workers, "scores, each by what is usual in the others", left_out)
    return healthy, calibrate(site, scores, rescored, maps, healthy, rate, voxel_ml, workers, left_out)
