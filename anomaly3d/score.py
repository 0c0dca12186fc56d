"""``python -m anomaly3d.score 'scans=[a.nii.gz]'``: anomaly scores and maps of new scans, on their own grids."""

import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from anomaly3d.cli import Done, command, several

if TYPE_CHECKING:
    from anomaly3d.scoring.new_scans import ScoringJob


def scoring_job(config: DictConfig, results: str) -> "ScoringJob":
    """The detector of ``model``, or of ``run`` and ``detector``, and the scans of ``scans``, ``root`` or ``manifest``.

    Args:
        results: where they go below the run's folder, where ``out`` names no other place.

    Raises:
        UserError: no such detector, two of them, no scans, or several processes.
    """
    from pathlib import Path

    from anomaly3d.arguments import key_of
    from anomaly3d.cli import chosen, plain, refuse_missing_inputs, typed
    from anomaly3d.errors import UserError
    from anomaly3d.runs.exported import read_exported
    from anomaly3d.runs.folder import choose_trained

    model = chosen("model")
    if model and (also := next((key for text in typed() if (key := key_of(text)) in ("run", "detector")), None)):
        raise UserError(f"model=... and {also}=... both name a detector: give one of them")
    run = Path(config.runs_dir) / (Path(model).resolve().name if model else config.run)
    # before what takes long to import
    trained = read_exported(Path(model)) if model else choose_trained(run, chosen("detector"))
    refuse_missing_inputs(config)

    from anomaly3d.cohorts.folder import FolderCohort
    from anomaly3d.cohorts.manifest import ScoredManifest
    from anomaly3d.data.store import check_limit
    from anomaly3d.preprocessing.cohort import Study
    from anomaly3d.scoring.calibration import check_batch
    from anomaly3d.scoring.inference import preprocessor_of, require_command
    from anomaly3d.scoring.new_scans import ScoringJob
    from anomaly3d.system.trainer import several_processes
    from anomaly3d.system.workers import worker_count

    trainer = plain(config.trainer)
    if several_processes(trainer):
        raise UserError("score and calibrate work in one process: leave out trainer=ddp, or say trainer.devices=1")
    require_command(trained, config.mask_command)
    scans = several(config.scans)
    given = [name for name in ("manifest", "root", "scans") if config[name]]
    if len(given) > 1:
        raise UserError(f"{' and '.join(f'{name}=...' for name in given)} each say which scans: give one of them")
    check_batch(config.batch)
    check_limit(config.memory_gb)
    cohort = (
        ScoredManifest("scored", config.manifest) if config.manifest else FolderCohort("scored", config.root, scans)
    )
    workers = worker_count(config.workers, config.scheduler)
    study = Study(cohort, preprocessor_of(trained), Path(config.data_dir), workers)
    out = Path(config.out) if config.out else run / results
    return ScoringJob(trained, study, out, config.batch, trainer, config.memory_gb)


@command("score")
def main(config: DictConfig) -> Done:
    """Score new scans with a detector of ``run=...`` and write maps beside the scores."""
    job = scoring_job(config, "scored")

    from dataclasses import replace

    from anomaly3d.report.worklist import present_scored
    from anomaly3d.scans.dicom_results import require_highdicom
    from anomaly3d.scoring.calibration import check_volume
    from anomaly3d.scoring.new_scans import LOCK, score_scans
    from anomaly3d.system.files import locked

    check_volume("smallest_cluster_ml", config.smallest_cluster_ml)
    if config.dicom:
        require_highdicom()
    study = replace(job.study, accept=several(config.accept), rejected_too=True)
    job = replace(job, study=study, smallest_cluster_ml=config.smallest_cluster_ml, dicom=bool(config.dicom))
    with locked(job.out / LOCK, str(job.out), wait=True):  # several calls may write beside each other's results
        scored = score_scans(job, config.site)
        present_scored(scored, job, config.images)
    return Done(scored.code)


if __name__ == "__main__":
    sys.exit(main())
