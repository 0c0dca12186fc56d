"""Evaluate a run: its detectors on the same test scans, and of one of them everything that a reviewer asks for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from anomaly3d.data.module import PSEUDO, HeadCTDataModule
from anomaly3d.data.pseudo_anomalies import base_of
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.evaluation.localization import locate_scan, summarise_localization
from anomaly3d.evaluation.metrics import LAYERED, LAYERED_NAME, auc_of, both_classes, ranked, summarise
from anomaly3d.evaluation.thresholds import (
    conformal_rates,
    false_positives_by,
    operating_points,
    recall_by,
    site_shift,
)
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.folder import Trained, find_trained
from anomaly3d.runs.lineage import require_same_data, split_hash
from anomaly3d.scans.manifest import SPLITS, TRUTH
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps, maps_of
from anomaly3d.scoring.calibration import (
    OWN,
    Calibration,
    calibrate,
    calibration_folder,
    check_rate,
    check_volume,
    healthy_file,
)
from anomaly3d.scoring.familiarity import INPUTS, UNLIKE, Familiar, input_statistics
from anomaly3d.scoring.inference import Inference, preprocessor_of
from anomaly3d.scoring.scan_scores import choose, choose_without_each, rescore, score_names
from anomaly3d.statistics.auc import share
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import is_leader, say
from anomaly3d.system.workers import Workers, run_in_threads

REFERENCE = "healthy_reference"  # a split of its own for the statistics of anomaly maps
TASKS = ("validation", PSEUDO, REFERENCE, "calibration", "test")  # splits that are scored
LABELLED_ROLES = ("upper", "oracle")  # know what a detector without labels does not: nothing is chosen for them
ROLES = ("method", "trivial", "upper", "oracle")  # in the order of the tables


@dataclass(frozen=True)
class Options:
    """``conf/evaluate``."""

    batch: int
    score: str | None
    false_positive_rate: float
    voxel_false_alarm_ml: float
    trainer: Mapping[str, Any]
    workers: Workers
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no rate or volume.

        Raises:
            UserError: names the key.
        """
        check_rate("false_positive_rate", self.false_positive_rate)
        check_volume("voxel_false_alarm_ml", self.voxel_false_alarm_ml)


@dataclass(frozen=True)
class Scored:
    """A detector's rescored tables by split, and what was learned from the healthy ones."""

    tables: dict[str, pd.DataFrame]
    maps: dict[str, list[ScanMaps]]
    healthy: Healthy
    ranking: dict[str, float]  # AUC of every score against pseudo-anomalies, the best first
    without_each: dict[str, dict[str, Any]]  # see ``choose_without_each``
    chosen: str  # the score that thresholds belong to
    calibrations: list[Calibration] = field(default_factory=list)  # of the chosen score, and of A(x)


@dataclass(frozen=True)
class Evaluated:
    """What a report is made from.

    ``focus`` is the detector that it is about, ``detector`` itself, ``out`` where its scores and volumes are,
    ``scored`` what became of them; ``others`` are the test tables of other detectors by label; ``metrics`` is what
    ``metrics.json`` holds.
    """

    focus: Trained
    detector: Detector
    data: HeadCTDataModule
    out: Path
    scored: Scored
    others: dict[str, pd.DataFrame]
    metrics: dict[str, Any]

    @property
    def table(self) -> pd.DataFrame:
        """Every score of the test scans."""
        return self.scored.tables["test"]

    @property
    def locked(self) -> Calibration | None:
        """Whose threshold counts; None where there are no calibration scans."""
        return next(iter(self.scored.calibrations), None)


def folder_of(out: Path, split: str) -> Path:
    """Where the scores of a split lie: those of the test scans are what the run is about."""
    return out if split == "test" else out / split


def evaluate_run(run: Path, focus: Trained, prepared: PreparedCohort, options: Options) -> Evaluated | None:
    """Evaluate the detectors of a run; None on the processes that only help with scoring.

    Raises:
        UserError: splits are empty or not those that were trained with, or a score that the detector does not have.
    """
    data = HeadCTDataModule(prepared, options.batch, memory_gb=options.memory_gb)
    data.setup()
    data.require("train", "validation", "test")
    require_same_data(focus.lineage, prepared, focus.folder.path)
    inference, detector = Inference(data, options.trainer), focus.load()
    out = run / "evaluation" / focus.name
    say(f"evaluate: {detector.title} of run {run.name}, {focus.stage}, into {out}")
    splits = [split for split in TASKS if not data.split(split).empty]
    tables = {split: inference.once(focus, split, folder_of(out, split), volumes=True) for split in splits}
    beside = others_of(run, focus, data)
    say(f"evaluate: the test scans with {len(beside)} others")
    others = {t.label: score_other(t, data, inference, run / "evaluation" / t.label, options) for t in beside}
    if not is_leader():
        return None
    scored = rescore_all(data, tables, out, detector, options)
    scored = replace(scored, calibrations=calibrations_of(scored, options))
    unlike = how_unlike(data, focus, options.workers)
    test = scored.tables["test"]
    scored.tables["test"] = test.assign(**{UNLIKE: test["scan_id"].map(unlike).fillna("")})
    store(scored, focus.folder.path, out)
    own = [part for part in score_names(tables["test"]) if part != "total"]
    test, chosen = scored.tables["test"], scored.chosen
    metrics = {
        "focus": focus.name,
        "detectors": {t.label: known(t) for t in [focus, *beside]},
        **summarise(test, others, set_aside(prepared), chosen if chosen != "total" else None, own),
        **beyond_ranking(scored, bool(options.score)),
        "localization": localize(data, scored, out, options.workers),
        "flow": flow(prepared),
        UNLIKE: share_by_cohort(scored.tables["test"], UNLIKE),
    }
    with written_whole(run / "evaluation" / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    return Evaluated(focus, detector, data, out, scored, others, metrics)


def how_unlike(data: HeadCTDataModule, focus: Trained, workers: Workers) -> dict[str, str]:
    """In what each test scan differs from training scans, by ``scan_id``; what is usual is kept beside the model."""
    preprocessor, quality = preprocessor_of(focus), data.prepared.quality
    both = {s: input_statistics(data.split(s), quality, preprocessor.reasons, workers) for s in ("train", "test")}
    familiar = Familiar.measure(both["train"])
    familiar.save(calibration_folder(focus.folder.path) / INPUTS)
    return familiar.told(both["test"], preprocessor)


def share_by_cohort(test: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """Share of ranked test scans for which a text column says something, by cohort, with its interval."""
    rows = ranked(test)
    return {str(c): share((r[column] != "").to_numpy(), r["subject_id"].to_numpy()) for c, r in rows.groupby("cohort")}


def known(trained: Trained) -> dict[str, str]:
    """What tables say of a detector."""
    return {"title": trained.lineage["title"], "role": trained.lineage["role"], "stage": trained.stage}


def others_of(run: Path, focus: Trained, data: HeadCTDataModule) -> list[Trained]:
    """What stands beside a detector: its own earlier stages, and all others of the run on the same data, by role.

    A detector that was trained with other data, or that reads what the test scans do not have, is left out.
    """
    found, test = [], data.split("test")
    for trained in find_trained(run):
        if trained.label == focus.label or (trained.earlier and trained.name != focus.name):
            continue
        same = trained.lineage["prepared"] == data.prepared.folder.name
        if not same or trained.lineage["split_hash"] != split_hash(data.prepared.table):
            say(f"{trained.label} of this run was trained with other scans and is left out")
        elif lacking := [(k, n) for k in trained.lineage["reads"] if (n := int((test[k] == "").sum()))]:
            kind, count = lacking[0]
            say(f"{trained.label} of this run is left out: {count} of {len(test)} test scans have no {kind}")
        else:
            found.append(trained)
    return sorted(found, key=lambda t: (t.name != focus.name, ROLES.index(t.lineage["role"])))


def rescore_all(
    data: HeadCTDataModule, tables: dict[str, pd.DataFrame], out: Path, detector: Detector, options: Options
) -> Scored:
    """From a detector's own scores to every score, the chosen one, and its threshold; no test scan decides anything.

    Raises:
        UserError: a score that the detector does not have.
    """
    maps = {split: maps_of(data.split(split), folder_of(out, split)) for split in tables}
    reference = REFERENCE if REFERENCE in tables else "validation"
    healthy = Healthy.measure(maps[reference], tables[reference], detector.parts)
    measured_on = {}
    if reference == "validation":
        base = {scan.scan_id: scan for scan in maps["validation"]}
        measured_on = {scan.scan_id: base[base_of(scan.scan_id)] for scan in maps["validation"] + maps[PSEUDO]}
    together = pd.concat([table.assign(task=split) for split, table in tables.items()], ignore_index=True)
    every = [scan for split in tables for scan in maps[split]]
    found = rescore(together, every, healthy, options.workers, f"{detector.title}: scores", measured_on)
    rescored = {s: found[found["task"] == s].drop(columns="task").reset_index(drop=True) for s in tables}
    fair = rescored[PSEUDO][rescored[PSEUDO]["lesions"].isin(detector.judged_by)]
    chosen, ranking = choose(rescored["validation"], fair)
    without = choose_without_each(rescored["validation"], fair)
    if options.score and options.score not in ranking:
        raise UserError(f"score={options.score}: this detector has {', '.join(ranking)}")
    return Scored(rescored, maps, healthy, ranking, without, options.score or chosen)


def calibrations_of(scored: Scored, options: Options) -> list[Calibration]:
    """Of the chosen score, and of A(x) where that is another; none without calibration scans."""
    if "calibration" not in scored.tables:
        return []
    return calibrate(
        OWN,
        list(dict.fromkeys([scored.chosen, "total"])),
        scored.tables["calibration"],
        scored.maps["calibration"],
        scored.healthy,
        options.false_positive_rate,
        options.voxel_false_alarm_ml,
        options.workers,
    )


def score_other(
    trained: Trained, data: HeadCTDataModule, inference: Inference, out: Path, options: Options
) -> pd.DataFrame:
    """The test table of a detector that stands beside: its own score, and where it can be made the one that the same
    rule chooses for it, ``LAYERED``, whose name is ``LAYERED_NAME``.
    """
    detector = trained.load()
    if trained.lineage["role"] in LABELLED_ROLES or detector.reads:
        return inference.once(trained, "test", out)
    splits = [split for split in TASKS if split != "calibration" and not data.split(split).empty]
    tables = {split: inference.once(trained, split, folder_of(out, split), volumes=True) for split in splits}
    if not is_leader():
        return tables["test"]
    scored = rescore_all(data, tables, out, detector, replace(options, score=None))
    test = scored.tables["test"]
    test[LAYERED], test[LAYERED_NAME] = test[scored.chosen], scored.chosen
    return test


def store(scored: Scored, stage: Path, out: Path) -> None:
    """Keep beside the model what ``score`` needs, and beside the evaluation every score of the test scans."""
    scored.healthy.save(healthy_file(stage, OWN))
    for calibration in scored.calibrations[:1]:
        calibration.save(calibration_folder(stage) / f"{OWN}.json")
    with written_whole(out / "rescored.csv") as path:
        scored.tables["test"].to_csv(path, index=False, float_format="%.9g")


def beyond_ranking(scored: Scored, named: bool) -> dict[str, Any]:
    """What thresholds do, whom they hit, and how every score ranks with (oracle) and without looking at labels.

    Args:
        named: the config names the score, so it was not chosen here.
    """
    test = scored.tables["test"]
    rows = ranked(test)
    oracle = {n: auc_of(rows, n).as_json() for n in score_names(test)} if both_classes(rows) else {}
    found: dict[str, Any] = {
        "score": {
            "chosen": scored.chosen,
            "by": "config" if named else "pseudo-anomalies",
            "pseudo_auc": scored.ranking,
            "oracle_test_auc": oracle,
            "agreement": agreement(scored.ranking, oracle),
            "without_each": scored.without_each,
            "healthy_scans": scored.healthy.count,
        },
        "operating_points": operating_points(test, scored.calibrations),
        "site_shift": site_shift(test, scored.chosen),
    }
    for calibration in scored.calibrations[:1]:
        found["conformal"] = conformal_rates(test, calibration)
        if calibration.possible:
            found["recall_by"] = recall_by(test, calibration)
            found["false_positives_by"] = false_positives_by(test, calibration)
    return found


def agreement(ranking: dict[str, float], oracle: dict[str, Any]) -> float | None:
    """Spearman's correlation between the ranking of scores by pasted anomalies and by test labels, if any."""
    pasted, labelled = [ranking[n] for n in oracle], [oracle[n]["value"] for n in oracle]
    if len(oracle) < 3 or len(set(pasted)) < 2 or len(set(labelled)) < 2:
        return None
    return round(float(spearmanr(pasted, labelled).statistic), 3)


def localize(data: HeadCTDataModule, scored: Scored, out: Path, workers: Workers) -> dict[str, Any]:
    """How well anomaly maps find the lesions of test scans that have a mask; empty without maps, masks or threshold."""
    rows = data.split("test").set_index("scan_id")
    wanted = rows.loc[ranked(scored.tables["test"])["scan_id"]].reset_index()
    has_mask = (wanted["lesion_mask"] != "") & (wanted["label"] == "1")
    wanted = wanted[has_mask | (wanted["label"] == "0")]
    maps = maps_of(wanted, out)
    if not scored.calibrations or not has_mask.any() or not maps:
        return {}
    masks = [{m: r[m] for m in TRUTH if r[m] and r["label"] == "1"} for r in wanted.to_dict("records")]
    thresholds = scored.calibrations[0].voxel_thresholds
    jobs = [(m, k, scored.healthy, thresholds) for m, k in zip(maps, masks, strict=True)]
    found = [row for part in run_in_threads(locate_scan, jobs, workers, "localization") for row in part]
    if not found:
        return {}
    located = pd.DataFrame(found).merge(wanted[["scan_id", "subject_id"]], on="scan_id")
    located = located.sort_values(["scan_id", "map", "mask"])  # they came as they finished, and a sum has an order
    with written_whole(out / "localization.csv") as path:
        located.to_csv(path, index=False, float_format="%.6g")
    summary = summarise_localization(located)
    for mask in TRUTH:  # the smallest lesions have no voxel left at this resolution: they count as not shown
        there = int(((wanted[mask] != "") & (wanted["label"] == "1")).sum())
        for entry in summary.get(mask, {}).values():
            entry["n_vanished"] = there - entry["n_scans"]
    return summary


def flow(prepared: PreparedCohort) -> dict[str, dict[str, int]]:
    """By split: scans and subjects of the cohort, what quality control made of them, and how many are used."""
    used, found = prepared.table["split"].value_counts(), {}
    for split in SPLITS:
        rows = prepared.quality[prepared.quality["split"] == split]
        if not rows.empty:
            verdicts = rows["verdict"].value_counts()
            found[split] = {
                "scans": len(rows),
                "subjects": int(rows["subject_id"].nunique()),
                **{verdict: int(verdicts.get(verdict, 0)) for verdict in ("accepted", "rejected", "unreadable")},
                "used": int(used.get(split, 0)),
            }
    return found


def set_aside(prepared: PreparedCohort) -> pd.DataFrame:
    """The test scans that quality control rejected or that could not be read."""
    quality = prepared.quality
    used = (quality["verdict"] == "accepted") | (quality["group"] == "low_quality")
    return quality[(quality["split"] == "test") & ~used]
