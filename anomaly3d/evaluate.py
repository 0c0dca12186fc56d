"""``python -m anomaly3d.evaluate run=demo``: tables, figures and a page of a run's detectors on its test scans, or with
``dataset=...`` on those of another cohort."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from omegaconf import DictConfig

from anomaly3d.cli import Done, chosen, command, plain, refuse_missing_inputs, searchpath, several
from anomaly3d.errors import UserError

if TYPE_CHECKING:
    from anomaly3d.evaluation.judging import Evaluated
    from anomaly3d.preprocessing.cohort import PreparedCohort, Study
    from anomaly3d.runs.folder import Trained
    from anomaly3d.system.workers import Workers


@command("evaluate")
def main(config: DictConfig) -> Done:
    """Evaluate the run of ``run=...``; its report is about ``detector=...`` and compares it with all others.

    On the run's own cohort, or on that of ``dataset=...``.
    """
    from anomaly3d.runs.folder import choose_trained

    run = Path(config.runs_dir) / config.run
    focus = choose_trained(run, chosen("detector"))  # before what takes long to import
    refuse_missing_inputs(config)

    from anomaly3d.system.files import locked
    from anomaly3d.system.progress import is_leader
    from anomaly3d.system.quiet import hush

    hush()
    with locked(run / ".evaluate.lock", str(run)) if is_leader() else nullcontext():
        return evaluate(run, focus, config)


def evaluate(run: Path, focus: "Trained", config: DictConfig) -> Done:
    """``main``, when no other process evaluates the run."""
    from anomaly3d.evaluation.elsewhere import evaluate_elsewhere
    from anomaly3d.evaluation.options import Options
    from anomaly3d.evaluation.run import evaluate_run
    from anomaly3d.runs.lineage import require_same_data
    from anomaly3d.scoring.inference import prepared_of
    from anomaly3d.scoring.new_scans import tell_set_aside
    from anomaly3d.system.workers import worker_count

    settings = {"trainer": plain(config.trainer), "memory_gb": config.memory_gb}
    workers = worker_count(config.workers, config.scheduler)
    options = Options(
        config.batch,
        config.score,
        config.false_positive_rate,
        config.voxel_false_alarm_ml,
        settings["trainer"],
        workers,
        config.by_age,
        config.densest_hu,
        config.memory_gb,
    )
    code = 0
    if other := other_cohort(config, focus, workers):
        prepared = other.prepare()
        tell_set_aside(prepared)
        code = 0 if prepared.with_verdict("unreadable").empty else 3
        found = evaluate_elsewhere(run, focus, prepared, other.cohort.synthetic, options)
    else:
        prepared = prepared_of(focus, Path(config.data_dir))
        manifest = focus.lineage["settings"]["dataset"].get("manifest")
        if manifest and Path(manifest).exists():
            prepared.refuse_edited(Path(manifest))
        require_same_data(focus.lineage, prepared, focus.folder.path)  # before a control is fitted anew
        for control in several(config.controls):
            fit_control(control, run, focus, prepared, settings)
        found = evaluate_run(run, focus, prepared, options)
    if found is None:
        return Done(code)
    report_of(found, config)
    score = found.metrics["score"]
    return Done(code, score["pseudo_auc"][score["chosen"]])  # by which a sweep may choose: no test scan is in it


def other_cohort(config: DictConfig, focus: "Trained", workers: "Workers") -> "Study | None":
    """The cohort of ``dataset=...``, prepared as the run's scans were; None for none, and for the run's own.

    Raises:
        UserError: it cannot be built, or the run's scans had a skull stripper that was not named anew.
    """
    if chosen("dataset") is None:
        return None

    from anomaly3d.cohorts.base import Cohort
    from anomaly3d.preprocessing.cohort import Study
    from anomaly3d.scoring.inference import preprocessor_of, require_command
    from anomaly3d.system.instantiate import build

    require_command(focus, config.mask_command)
    cohort, data_dir = build(plain(config.dataset), "dataset config", Cohort), Path(config.data_dir)
    study = Study(cohort, preprocessor_of(focus), data_dir, workers)
    own = data_dir / focus.lineage["cohort"] / focus.lineage["prepared"]
    return None if study.folder == own else study


def report_of(found: "Evaluated", config: DictConfig) -> None:
    """Figures and page of an evaluation, and its numbers to the logger."""
    from anomaly3d.evaluation.metrics import ranked
    from anomaly3d.report.build import CASES, present
    from anomaly3d.runs.tracking import log_report, make_logger, may_log, scrub

    report, setting = present(found, config.images), found.setting
    # not named after another cohort: the folder of a manifest may be somebody's
    logger = make_logger(plain(config.logger), setting.run, setting.place.relative_to(setting.run).parts[0])
    focus = setting.focus
    if logger:
        logger.log_hyperparams(scrub({k: v for k, v in focus.lineage.items() if k != "finished"}))
    pictures = may_log(logger, "images", setting.synthetic)
    figures = {name: file for name, file in report.figures.items() if pictures or name != CASES}
    log_report(logger, focus.folder.path, found.metrics, ranked(found.table), found.table, figures)


def fit_control(name: str, run: Path, focus: "Trained", prepared: "PreparedCohort", settings: dict[str, Any]) -> None:
    """Fit a control to the training data of a run's detector, unless the run holds it; kept as any detector."""
    from anomaly3d.detectors.base import build_detector
    from anomaly3d.runs.folder import PhaseFolder
    from anomaly3d.runs.lineage import data_hashes, same_data
    from anomaly3d.system.progress import is_leader
    from anomaly3d.system.trainer import started_together
    from anomaly3d.training.job import Job
    from anomaly3d.training.run import train_phase

    lineage = PhaseFolder(run / name / "fit").finished()
    same = lineage and same_data(lineage, data_hashes(prepared)) and lineage["prepared"] == focus.lineage["prepared"]
    if same or name == focus.name:
        return
    if started_together():
        raise UserError(
            f"control {name} is not fitted yet, which takes one process: evaluate once without torchrun or srun, or "
            "leave it out of controls=[...]"
        )
    if not is_leader():
        return
    config = plain(compose("train", [f"detector={name}", "+phase=fit", "callbacks=none", *searchpath()]))
    test = prepared.table[prepared.table["split"] == "test"]
    reads = build_detector(config["detector"]["module"]).reads
    if any(test.empty or (test[kind] == "").any() for kind in reads):
        return
    kept = {key: focus.lineage["settings"][key] for key in ("seed", "dataset", "preprocessing")}
    config |= {**kept, "trainer": settings["trainer"], "memory_gb": settings["memory_gb"], "overwrite": True}
    config["logger"] = {}
    resolution = focus.lineage["settings"]["preprocessing"]["resolution"]
    train_phase(Job(prepared, resolution, focus.lineage["synthetic"], run, config))


if __name__ == "__main__":
    sys.exit(main())
