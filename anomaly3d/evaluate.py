"""``python -m anomaly3d.evaluate run=demo``: tables, figures and a page of a run's detectors on its test scans."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from omegaconf import DictConfig

from anomaly3d.cli import Done, chosen, command, plain, searchpath

if TYPE_CHECKING:
    from anomaly3d.preprocessing.cohort import PreparedCohort
    from anomaly3d.runs.folder import Trained


@command("evaluate")
def main(config: DictConfig) -> Done:
    """Evaluate the run of ``run=...``; its report is about ``detector=...`` and compares it with all others."""
    from anomaly3d.runs.folder import choose_trained

    run, data_dir = Path(config.runs_dir) / config.run, Path(config.data_dir)
    focus = choose_trained(run, chosen("detector"))  # before what takes long to import

    from anomaly3d.evaluation.metrics import ranked
    from anomaly3d.evaluation.run import Options, evaluate_run
    from anomaly3d.report.build import CASES, present
    from anomaly3d.runs.tracking import log_report, make_logger, may_log, scrub
    from anomaly3d.scoring.inference import prepared_of
    from anomaly3d.system.quiet import hush
    from anomaly3d.system.workers import worker_count

    hush()
    settings = {"trainer": plain(config.trainer), "memory_gb": config.memory_gb}
    options = Options(
        config.batch,
        config.score,
        config.false_positive_rate,
        config.voxel_false_alarm_ml,
        settings["trainer"],
        worker_count(config.workers, config.scheduler),
        config.memory_gb,
    )
    prepared = prepared_of(focus, data_dir)
    for control in config.controls:
        fit_control(control, run, focus, prepared, settings)
    found = evaluate_run(run, focus, prepared, options)
    if found is None:
        return Done()
    report = present(found, run, config.images)
    logger = make_logger(plain(config.logger), run, "evaluation")
    if logger:
        logger.log_hyperparams(scrub({k: v for k, v in focus.lineage.items() if k != "finished"}))
    pictures = may_log(logger, "images", focus.lineage["synthetic"])
    figures = {name: file for name, file in report.figures.items() if pictures or name != CASES}
    log_report(logger, focus.folder.path, found.metrics, ranked(found.table), found.table, figures)
    score = found.metrics["score"]
    return Done(value=score["pseudo_auc"][score["chosen"]])  # by which a sweep may choose: no test scan is in it


def fit_control(name: str, run: Path, focus: "Trained", prepared: "PreparedCohort", settings: dict[str, Any]) -> None:
    """Fit a control to the training data of a run's detector, unless the run holds it; kept as any detector."""
    from anomaly3d.detectors.base import build_detector
    from anomaly3d.runs.folder import PhaseFolder
    from anomaly3d.runs.lineage import split_hash
    from anomaly3d.system.progress import is_leader
    from anomaly3d.training.run import Job, train_phase

    config = plain(compose("train", [f"detector={name}", "+phase=fit", "callbacks=none", *searchpath()]))
    test = prepared.table[prepared.table["split"] == "test"]
    if not is_leader() or any((test[kind] == "").any() for kind in build_detector(config["detector"]["module"]).reads):
        return
    lineage = PhaseFolder(run / name / "fit").finished()
    same = (
        lineage
        and lineage["split_hash"] == split_hash(prepared.table)
        and lineage["prepared"] == focus.lineage["prepared"]
    )
    if same or name == focus.name:
        return
    kept = {key: focus.lineage["settings"][key] for key in ("seed", "dataset", "preprocessing")}
    config |= {**kept, "trainer": settings["trainer"], "memory_gb": settings["memory_gb"], "overwrite": True}
    config["logger"] = {}
    resolution = focus.lineage["settings"]["preprocessing"]["resolution"]
    train_phase(Job(prepared, resolution, focus.lineage["synthetic"], run, config))


if __name__ == "__main__":
    sys.exit(main())
