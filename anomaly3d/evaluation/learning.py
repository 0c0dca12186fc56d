"""What a detector's own healthy scans teach: what is usual in its maps, which of its scores counts, and thresholds.

All of it is kept beside the model, so that any other cohort is judged without the scans that it was learned from.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd

from anomaly3d.data.module import PSEUDO, HeadCTDataModule
from anomaly3d.data.pseudo_anomalies import base_of
from anomaly3d.errors import UserError
from anomaly3d.evaluation.options import Options
from anomaly3d.runs.folder import Trained
from anomaly3d.scoring.anomaly_maps import Ageing, Healthy, maps_of
from anomaly3d.scoring.calibration import (
    CHOICE,
    OWN,
    TOTAL,
    Calibration,
    calibrate,
    calibration_folder,
    healthy_file,
    refuse_unknown_ages,
)
from anomaly3d.scoring.combination import Reference, with_combined
from anomaly3d.scoring.inference import Inference, preprocessor_of
from anomaly3d.scoring.scan_scores import choose, choose_without_each, of_one_subject, rescore
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import is_leader

REFERENCE = "healthy_reference"  # a split of its own for the statistics of anomaly maps
TASKS = ("validation", PSEUDO, REFERENCE, "calibration")  # splits that are scored to learn from
LABELLED_ROLES = ("upper", "oracle")  # know what a detector without labels does not: nothing is chosen for them


@dataclass(frozen=True)
class Learned:
    """What an evaluation learned for one detector, of no test scan.

    ``ranking`` is the AUC of every score against pseudo-anomalies, the best first; ``without_each`` is that of
    ``choose_without_each``; ``chosen`` the score that thresholds belong to, ``by`` config or pseudo-anomalies;
    ``calibrations`` are those of the chosen score and of A(x), none without calibration scans.
    """

    healthy: Healthy
    ranking: dict[str, float]
    without_each: dict[str, dict[str, Any]]
    chosen: str
    by: str
    calibrations: list[Calibration]

    @property
    def scores(self) -> list[str]:
        """The chosen score, and A(x) where that is another."""
        return list(dict.fromkeys([self.chosen, "total"]))

    @property
    def locked(self) -> Calibration | None:
        """Whose threshold counts; None where there are no calibration scans."""
        return next((c for c in self.calibrations if c.score == self.chosen), None)

    def named(self, score: str | None) -> Self:
        """With the score that the config names, if it names one.

        Raises:
            UserError: the detector has no such score.
        """
        if score is None:
            return self
        if score not in self.ranking:
            raise UserError(f"score={score}: this detector has {', '.join(self.ranking)}")
        return replace(self, chosen=score, by="config")

    def save(self, trained: Trained) -> None:
        """Keep it beside the model."""
        stage = trained.folder.path
        folder = calibration_folder(stage)
        self.healthy.save(healthy_file(stage, OWN))
        files = {c.score: calibration_file(stage, c.score, self.chosen) for c in self.calibrations}
        for old in {calibration_file(stage, "total", score) for score in ("total", "")} - set(files.values()):
            old.unlink(missing_ok=True)  # of a model or a cohort before
        for calibration in self.calibrations:
            calibration.save(files[calibration.score], trained.digest(), healthy_file(stage, OWN))
        choice = {"model": trained.digest(), "chosen": self.chosen, "by": self.by, "pseudo_auc": self.ranking}
        with written_whole(folder / CHOICE) as path:
            path.write_text(json.dumps({**choice, "without_each": self.without_each}, indent=1))

    @classmethod
    def load(cls, trained: Trained) -> Self | None:
        """What ``save`` kept of this very model, None for nothing.

        Raises:
            UserError: a file is damaged.
        """
        stage = trained.folder.path
        file, usual = calibration_folder(stage) / CHOICE, healthy_file(stage, OWN)
        if not file.exists() or not usual.exists():
            return None
        try:
            kept = json.loads(file.read_text())
            chosen, words = kept["chosen"], (kept["pseudo_auc"], kept["without_each"], kept["chosen"], kept["by"])
            same = kept["model"] == trained.digest()
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged: run 'python -m anomaly3d.evaluate' again") from error
        if not same:
            return None
        files = [calibration_file(stage, score, chosen) for score in dict.fromkeys([chosen, "total"])]
        calibrations = [Calibration.load(path, trained, usual) for path in files if path.exists()]
        return cls(Healthy.load(usual), *words, calibrations)


def calibration_file(stage: Path, score: str, chosen: str) -> Path:
    """Where the run's own calibration of a score lies; of A(x) apart where another was chosen."""
    folder = calibration_folder(stage)
    return (folder if score == chosen else folder / TOTAL) / f"{OWN}.json"


def chooses(trained: Trained) -> bool:
    """Whether something is learned for a detector that stands beside: not for those that are shown labels."""
    return trained.lineage["role"] not in LABELLED_ROLES and not trained.lineage["reads"]


def folder_of(out: Path, split: str) -> Path:
    """Where the scores of a split lie: those of the test scans are what the run is about."""
    return out if split == "test" else out / split


def learn(
    trained: Trained, data: HeadCTDataModule, inference: Inference, out: Path, options: Options
) -> Learned | None:
    """Score the healthy splits and learn from them; None on the processes that only help with scoring.

    Raises:
        UserError: a score that the detector does not have.
    """
    detector, workers = trained.load(), options.workers
    splits = [split for split in TASKS if not data.split(split).empty]
    tables = {split: inference.once(trained, split, folder_of(out, split), volumes=True) for split in splits}
    if not is_leader():
        return None
    maps = {split: maps_of(data.split(split), folder_of(out, split)) for split in splits}
    reference = REFERENCE if REFERENCE in tables else "validation"
    densest = None if options.densest_hu is None else options.densest(preprocessor_of(trained))
    healthy = Healthy.measure(maps[reference], tables[reference], detector.parts, densest)
    if options.by_age and maps[reference]:
        people = list(tables[reference]["subject_id"])
        healthy = replace(healthy, ageing=Ageing.measure(maps[reference], people, healthy))
        if "calibration" in tables:
            refuse_unknown_ages(maps["calibration"])
    pasted = maps[PSEUDO] if reference == "validation" else []
    same = of_one_subject(data.split(reference), maps[reference])
    measured_on = {scan.scan_id: same[base_of(scan.scan_id)] for scan in maps[reference] + pasted}
    together = pd.concat([table.assign(task=split) for split, table in tables.items()], ignore_index=True)
    every = [scan for split in tables for scan in maps[split]]
    found = rescore(together, every, healthy, workers, f"{trained.label}: scores", measured_on)
    if detector.combined:
        usual = Reference.measure(found[found["task"] == reference], detector.combined)
        healthy = replace(healthy, reference=usual)
        found = with_combined(found, usual)
    rescored = {s: found[found["task"] == s].drop(columns="task").reset_index(drop=True) for s in tables}
    fair = rescored[PSEUDO][rescored[PSEUDO]["lesions"].isin(detector.judged_by)]
    chosen, ranking = choose(rescored["validation"], fair)
    without = choose_without_each(rescored["validation"], fair)
    learned = Learned(healthy, ranking, without, chosen, "pseudo-anomalies", []).named(options.score)
    if "calibration" not in tables:
        return learned
    rates = options.false_positive_rate, options.voxel_false_alarm_ml
    healthy_scans = rescored["calibration"], maps["calibration"], healthy
    return replace(learned, calibrations=calibrate(OWN, learned.scores, *healthy_scans, *rates, workers))
