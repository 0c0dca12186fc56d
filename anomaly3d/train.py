"""``python -m anomaly3d.train +phase=gan``: train one phase; without ``+phase`` all phases of the detector in a row."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from anomaly3d.cli import Done, command, plain, recompose, refuse_unknown_keys, typed


@command("train")
def main(config: DictConfig) -> Done:
    """Train ``+phase=...``, or every phase of ``detector=...``, for the run of ``run=...``."""
    from anomaly3d.prepare import build_study
    from anomaly3d.system.memory import release_memory
    from anomaly3d.training.run import Job, train_phase

    configs = [config]
    if "name" not in config.phase:
        configs = [recompose("train", f"+phase={name}") for name in config.detector.phases]
        for each in configs:  # before any work
            refuse_unknown_keys("train", each, f"+phase={each.phase.name}")
    value = None
    for each in configs:
        study = build_study(each)
        run = Path(each.runs_dir) / str(each.run)
        job = Job(study, study.preprocessor.resolution, study.cohort.synthetic, run, plain(each), tuple(typed()))
        value = train_phase(job)
        release_memory()
    return Done(value=value)


if __name__ == "__main__":
    sys.exit(main())
