"""``python -m anomaly3d.train +phase=gan``: train one phase; without ``+phase`` all phases of the detector in a row."""

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from anomaly3d.arguments import as_hydra, key_of, leaves, said_anew
from anomaly3d.cli import Done, command, plain, recompose, refuse_unknown_keys, searchpath, typed
from anomaly3d.errors import UserError


def of_phase(config: DictConfig, name: str) -> DictConfig:
    """The config of one phase: ``conf/phase/NAME``, over it ``phases.NAME`` of an experiment, over that what was typed
    for every phase, and last for this one.

    Raises:
        UserError: it adds a key that nothing knows.
    """
    own, typed_own = config.phases.get(name), f"phases.{name}."
    if own is not None and not isinstance(own, DictConfig):
        raise UserError(f"phases.{name} must hold keys, such as {{steps: 4000}}, not {own!r}")
    before = [] if "name" in config.phase else [f"+phase={name}"]
    before += [f"++{key}={as_hydra(value)}" for key, value in leaves({"phase": plain(own)})] if own else []
    after = [
        f"++phase.{key_of(t)[len(typed_own) :]}={t.split('=', 1)[1]}"
        for t in typed()
        if key_of(t).startswith(typed_own)
    ]
    made = recompose("train", before, after) if before or after else config
    refuse_unknown_keys("train", made, [*before, *after])
    return made


def refuse_other_phases(detector: str, phases: Sequence[str]) -> None:
    """Refuse ``phases.NAME`` of the command line where the detector has no such phase.

    Raises:
        UserError: names the phases that there are.
    """
    for key in map(key_of, typed()):
        name = key.split(".")[1] if key.startswith("phases.") else None
        if name and name not in phases:
            raise UserError(f"{key}: detector={detector} has no phase {name}: its phases are {', '.join(phases)}")


@command("train")
def main(config: DictConfig) -> Done:
    """Train ``+phase=...``, or every phase of ``detector=...``, for the run of ``run=...``."""
    if not isinstance(config.phases, DictConfig):
        raise UserError(f"phases={config.phases} must hold phases with keys, such as phases.gan.steps=4000")
    refuse_other_phases(config.detector.name, config.detector.phases)
    usual = [name for name in config.detector.phases if name not in config.detector.get("on_request", [])]
    names = [config.phase.name] if "name" in config.phase else usual
    if config.parent and len(names) > 1:
        raise UserError(f"parent=... is what one phase begins with: say which, +phase={' or +phase='.join(names)}")
    configs = [of_phase(config, name) for name in names]  # all of them before any work

    from anomaly3d.prepare import build_study, tell_usual

    if not Path(config.runs_dir, str(config.run)).exists():
        tell_usual(config)
    studies = [build_study(each) for each in configs]

    from anomaly3d.system.memory import release_memory
    from anomaly3d.training.job import Job
    from anomaly3d.training.run import train_phase

    value = None
    for each, study in zip(configs, studies, strict=True):
        run = Path(each.runs_dir) / str(each.run)
        words = tuple(typed()), (*filter(said_anew, typed()), *searchpath())
        job = Job(study, study.preprocessor.resolution, study.cohort.synthetic, run, plain(each), *words)
        number = train_phase(job)
        value = value if number is None else number
        release_memory()
    return Done(value=value)


if __name__ == "__main__":
    sys.exit(main())
