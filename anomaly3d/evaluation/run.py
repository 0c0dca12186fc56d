"""Evaluate a run: its scans through each stage and the controls, then everything a reviewer asks for, from tables."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich.table import Table

from anomaly3d.data import PSEUDO, HeadCTDataModule
from anomaly3d.detectors.base import Detector
from anomaly3d.detectors.controls import CONTROLS, FEWEST, Twin
from anomaly3d.detectors.registry import load_detector
from anomaly3d.errors import UserError
from anomaly3d.evaluation.calibration import OWN, Calibration, calibrate, calibration_folder, check_rate
from anomaly3d.evaluation.inference import Inference, finished_stages, prepared_folder
from anomaly3d.evaluation.localization import locate_scan, summarise_localization
from anomaly3d.evaluation.metrics import auc_of, both_classes, ranked, summarise
from anomaly3d.evaluation.operating import (
    conformal_rates,
    false_positives_by,
    operating_points,
    recall_by,
    site_shift,
)
from anomaly3d.evaluation.rescoring import Healthy, choose, maps_of, rescore, score_names
from anomaly3d.files import written_whole
from anomaly3d.lineage import PhaseFolder, require_same_data, split_hash
from anomaly3d.parallel import run_parallel
from anomaly3d.preparation import worker_count
from anomaly3d.progress import console, is_leader, say
from anomaly3d.quiet import hush
from anomaly3d.report.build import Context, present
from anomaly3d.report.page import set_aside_text
from anomaly3d.report.tables import auc_rows
from anomaly3d.tracking import log_report

TASKS = ("train", "validation", PSEUDO, "calibration", "test")  # splits that are scored
MASKS = ("lesion_mask", "mass_effect_mask")


@dataclass(frozen=True)
class Scored:
    """A run's rescored tables by split, and what was learned from the healthy ones."""

    tables: dict[str, pd.DataFrame]
    healthy: Healthy
    ranking: dict[str, float]  # AUC of every score against pseudo-anomalies, the best first
    chosen: str  # the score that thresholds belong to
    calibrations: list[Calibration]  # of the chosen score, and of A(x) where that is another


def folder_of(out: Path, split: str) -> Path:
    """Where the scores of a split lie: those of the test scans are what the run is about."""
    return out if split == "test" else out / split


def rescore_all(
    data: HeadCTDataModule, tables: dict[str, pd.DataFrame], out: Path, config: DictConfig, reconstructs: bool
) -> Scored:
    """From tables of distances to every score, the chosen one, and its threshold; no test scan decides anything.

    Args:
        reconstructs: whether the detector has residual maps to score.
    """
    workers = worker_count(config)
    maps = {split: maps_of(data.split(split), folder_of(out, split)) for split in tables}
    healthy = Healthy.measure(maps["train"], tables["train"])
    rescored = {
        split: rescore(table, maps[split] if reconstructs else [], healthy, workers, f"scores of {split} scans")
        for split, table in tables.items()
        if split != "train"
    }
    chosen, ranking = choose(rescored["validation"], rescored[PSEUDO])
    if config.score and config.score not in ranking:
        raise UserError(f"score={config.score}: this detector has {', '.join(ranking)}")
    chosen = config.score or chosen
    calibrations = []
    if "calibration" in rescored:
        calibrations = calibrate(
            OWN,
            list(dict.fromkeys([chosen, "total"])),
            rescored["calibration"],
            maps["calibration"],
            healthy,
            config.false_positive_rate,
            config.voxel_false_positive_rate,
            workers,
        )
    return Scored(rescored, healthy, ranking, chosen, calibrations)


def localize(data: HeadCTDataModule, scored: Scored, out: Path, workers: int) -> dict[str, Any]:
    """How well anomaly maps find the lesions of test scans that have a mask; empty without masks or threshold."""
    rows = data.split("test").set_index("scan_id")
    table = ranked(scored.tables["test"])
    wanted = rows.loc[table["scan_id"]].reset_index()
    has_mask = (wanted["lesion_mask"] != "") & (wanted["label"] == "1")
    if not scored.calibrations or not has_mask.any():
        return {}
    wanted = wanted[has_mask | (wanted["label"] == "0")]
    masks = [{m: r[m] for m in MASKS if r[m] and r["label"] == "1"} for r in wanted.to_dict("records")]
    thresholds = scored.calibrations[0].voxel_thresholds
    jobs = [(m, k, scored.healthy, thresholds) for m, k in zip(maps_of(wanted, out), masks, strict=True)]
    found = [row for part in run_parallel(locate_scan, jobs, workers, "localization") for row in part]
    if not found:
        return {}
    located = pd.DataFrame(found).merge(wanted[["scan_id", "subject_id"]], on="scan_id")
    located = located.sort_values(["scan_id", "map", "mask"])  # they came as they finished, and a sum has an order
    with written_whole(out / "localization.csv") as path:
        located.to_csv(path, index=False, float_format="%.6g")
    summary = summarise_localization(located)
    for mask in MASKS:  # the smallest lesions have no voxel left at this resolution: they count as not shown
        there = int(((wanted[mask] != "") & (wanted["label"] == "1")).sum())
        for entry in summary.get(mask, {}).values():
            entry["n_vanished"] = there - entry["n_scans"]
    return summary


def evaluate_run(config: DictConfig) -> int:
    """Evaluate ``config.run`` and return the command's exit code."""
    hush()
    run = Path(config.runs_dir) / config.run
    name = config.detector.name
    stages = finished_stages(run, name)
    stage, folder = next(iter(stages.items()))
    lineage = folder.read()
    assert lineage is not None
    prepared = prepared_folder(lineage, folder.path / "config.yaml", Path(config.data_dir))
    data = HeadCTDataModule(prepared, config.batch, 1, memory_gb=config.memory_gb)
    data.require("train", "validation", "test")
    if len(data.split("train")) < FEWEST:
        raise UserError(f"{prepared} holds fewer than {FEWEST} training scans: the controls cannot be fitted")
    for name_of_rate in ("false_positive_rate", "voxel_false_positive_rate"):
        check_rate(name_of_rate, config[name_of_rate])
    for phase in stages.values():
        require_same_data(phase.read(), prepared, phase.path)
    out = (run if name == "fanogan" else folder.path) / "evaluation"
    inference = Inference(data, config)
    say(f"evaluate: run {config.run}, {stage}, into {out}")
    detector = load_detector(stage, folder.model)
    tables = {
        split: inference.once(detector, folder.model, split, folder_of(out, split))
        for split in TASKS
        if not data.split(split).empty
    }
    others: dict[str, pd.DataFrame] = {}
    if stage == "finetune" and "encoder" in stages:
        model = stages["encoder"].model
        others["encoder_only"] = inference.once(load_detector("encoder", model), model, "test", out / "encoder_only")
    say("evaluate: the test scans with controls")
    for control, method in controls(run, data, stage).items():
        others[control] = inference.run(method, "test", out / control)
    if not is_leader():
        return 0
    scored = rescore_all(data, tables, out, config, detector.reconstructs)
    store(scored, folder.path, out)
    metrics = {
        **summarise(
            scored.tables["test"],
            others,
            read_set_aside(prepared),
            scored.chosen if scored.chosen != "total" else None,
        ),
        **beyond_ranking(scored, bool(config.score)),
        "localization": localize(data, scored, out, worker_count(config)) if detector.reconstructs else {},
    }
    with written_whole(out / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    context = Context(config.run, run, out, data, lineage, config.images)
    figures = present(context, scored.tables["test"], others, scored.calibrations, metrics)
    phantom = lineage["settings"]["dataset"]["kind"] == "phantom"
    if not (phantom if config.logger.images is None else config.logger.images):
        figures.pop("cases", None)
    show(metrics)
    if metrics["set_aside"]:
        say(f"test scans without a score: {set_aside_text(metrics['set_aside'])}")
    if not scored.calibrations:
        say("no threshold is locked: the cohort has no calibration split")
    say(f"report: {(out / 'report.html').resolve()}")
    log_report(config, stage, lineage, metrics, scored.tables["test"], figures)
    return 0


def store(scored: Scored, stage: Path, out: Path) -> None:
    """Keep beside the model what ``score`` needs, and beside the evaluation every score of the test scans."""
    folder = calibration_folder(stage)
    scored.healthy.save(folder / "healthy.npz")
    for calibration in scored.calibrations[:1]:
        calibration.save(folder / f"{OWN}.json")
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
        },
        "operating_points": operating_points(test, scored.calibrations),
        "site_shift": site_shift(test, scored.chosen),
    }
    for calibration in scored.calibrations[:1]:
        found |= {
            "recall_by": recall_by(test, calibration),
            "false_positives_by": false_positives_by(test, calibration),
            "conformal": conformal_rates(test, calibration),
        }
    return found


def controls(run: Path, data: HeadCTDataModule, but: str) -> dict[str, Detector]:
    """What stands in every table, except the detector ``but`` itself.

    Trivial methods, fitted here in seconds; a supervised network where the run holds one; the twin where there is one.
    """
    train, validation = data.volumes("train"), data.volumes("validation")
    found: dict[str, Detector] = {n: c.fit(train, validation) for n, c in CONTROLS.items() if n != but}
    supervised = PhaseFolder(run / "supervised")
    if but != "supervised" and (lineage := supervised.read()) and lineage["finished"]:
        if lineage["split_hash"] == split_hash(data.folder):
            found["supervised"] = load_detector("supervised", supervised.model)
        else:
            say("the supervised control of this run was fitted to other scans and is left out")
    if (data.split("test")["twin"] != "").all():
        found["twin"] = Twin()
    return found


def read_set_aside(prepared: Path) -> pd.DataFrame:
    """The test scans that quality control rejected or that could not be read."""
    quality = pd.read_csv(prepared / "quality.csv", dtype=str, keep_default_na=False)
    scored = (quality["verdict"] == "accepted") | (quality["group"] == "low_quality")
    return quality[(quality["split"] == "test") & ~scored]


def show(metrics: dict[str, Any]) -> None:
    """The AUC table in the terminal."""
    table = Table(title="Test scans, value [95 % interval]", title_justify="left")
    for column in ("Detector or part", "AUC", "AP", "normal + abnormal"):
        table.add_column(column)
    for row in auc_rows(metrics):
        table.add_row(*row.values())
    console.print(table)
