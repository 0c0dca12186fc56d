"""A phase to train as it was asked for, and all that can be wrong with that before any work."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly3d.data.store import check_limit
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Phase
from anomaly3d.preprocessing.cohort import PreparedCohort, Study
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.runs.lineage import can_resume, find_parent, is_as_wanted, is_replacing
from anomaly3d.system.files import sha256
from anomaly3d.system.instantiate import check_targets, located

BUILT = ("callbacks", "data", "detector", "logger", "phase", "trainer")  # parts of the config that describe objects
WHOLE = ("batch", "steps", "steps_per_epoch")
WATCHING = ("curves", "health", "numbers", "pictures", "progress")  # callbacks that change nothing


@dataclass(frozen=True)
class Job:
    """A phase to train.

    ``source`` is the study, or the cohort that has been prepared for it; ``resolution`` that of its volumes;
    ``synthetic`` whether they show no person. ``run`` is ``runs/NAME``, ``config`` the composed ``conf/train`` as plain
    values, ``typed`` what the user added to it on the command line, ``again`` what of it the run does not remember.
    """

    source: Study | PreparedCohort
    resolution: int
    synthetic: bool
    run: Path
    config: Mapping[str, Any]
    typed: tuple[str, ...] = ()
    again: tuple[str, ...] = ()

    @property
    def detector(self) -> Mapping[str, Any]:
        """``conf/detector``."""
        return self.config["detector"]

    @property
    def phase(self) -> Mapping[str, Any]:
        """``conf/phase``."""
        return self.config["phase"]

    @property
    def folder(self) -> PhaseFolder:
        """Where the phase's results go."""
        return PhaseFolder(self.run / self.detector["name"] / self.phase["name"])

    @property
    def of_one_phase(self) -> bool:
        """Whether its command is about this phase alone."""
        return any(text.startswith("+phase=") for text in self.typed)

    @property
    def dry(self) -> bool:
        """Whether only a few batches are tried, and nothing kept."""
        return bool(self.config["trainer"].get("fast_dev_run"))

    def settings(self) -> dict[str, Any]:
        """What decides the outcome of the phase; where and how fast it runs does not belong to it."""
        module = dict(self.detector["module"])
        model = module.pop("model", None)  # of conf/model, where the detector has networks of that group
        keys = ("seed", "dataset", "preprocessing", "data", "phase")
        acting = {name: c for name, c in self.config["callbacks"].items() if name not in WATCHING}
        clipped = {k: v for k, v in self.config["trainer"].items() if k.startswith("gradient_clip") and v is not None}
        return {
            **{k: self.config[k] for k in keys},
            "model": model,
            "detector": {**self.detector, "module": module},
            **({"callbacks": acting} if acting else {}),
            **({"trainer": clipped} if clipped else {}),
        }


def name_of(job: Job) -> str:
    """The phase for messages; of a detector with one phase, the detector."""
    return str(job.phase["name"] if len(job.detector["phases"]) > 1 else job.detector["name"])


def steps_of(job: Job, detector: Detector) -> tuple[int, int]:
    """Steps of the phase and between two validations; one for a detector that learns at once."""
    return (1, 1) if detector.fits_at_once else (job.phase["steps"], job.phase["steps_per_epoch"])


@dataclass(frozen=True)
class Start:
    """What a phase begins with: its parent's model, or None; whether to resume; None: it has been finished."""

    settings: dict[str, Any]
    parent: Path | None
    resume: bool | None


def check(job: Job) -> Start:
    """Everything that can be wrong in a config before any work.

    Raises:
        UserError: steps, resolution, another model's parent, a finished phase with other settings ...
    """
    name, detector, phase = job.phase["name"], job.detector, job.phase
    if name not in detector["phases"]:
        raise UserError(
            f"detector={detector['name']} has no phase {name}: its phases are {', '.join(detector['phases'])}"
        )
    for key, value in {**{f"phase.{n}": phase[n] for n in WHOLE}, "seed": job.config["seed"]}.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{key}={value}: a whole number is wanted, at least 0")
    check_limit(job.config["memory_gb"])
    check_optimized(job)
    if phase["batch"] < 1:
        raise UserError(f"phase.batch={phase['batch']}: a batch is at least 1 volume")
    steps, per_epoch = phase["steps"], phase["steps_per_epoch"]
    if per_epoch < 1 or steps < (0 if job.config["parent"] else 1):
        raise UserError(
            "phase.steps and phase.steps_per_epoch must be at least 1; phase.steps=0 is for a detector that takes the "
            "networks of parent=... as they are"
        )
    if steps % per_epoch:
        raise UserError(
            f"phase.steps ({steps}) must be a multiple of phase.steps_per_epoch ({per_epoch}), the steps between two "
            f"validations: add phase.steps_per_epoch={math.gcd(steps, per_epoch)}, or another"
        )
    check_targets({key: job.config[key] for key in BUILT})
    check_monitor(job)
    settings = job.settings()
    wanted, there = (settings["model"] or {}).get("resolution"), job.resolution
    if wanted not in (None, there):
        raise UserError(
            f"model.resolution ({wanted}) and preprocessing.resolution ({there}) differ: set both to the same value"
        )
    try:
        parent = find_parent(detector["phases"], name, job.run / detector["name"], job.config["parent"], settings)
    except UserError:
        if not job.dry:
            raise
        parent = None  # a dry run of a later phase begins with networks that have learned nothing
    if job.dry:
        return Start(settings, parent, False)
    if job.config["overwrite"] and not (
        is_replacing(job.folder, settings, parent) or replaced_before(job, settings, parent)
    ):
        return Start(settings, parent, False)
    start = Start(settings, parent, can_resume(job.folder, settings, parent))
    refuse_orphans(job, start)
    return start


def replaced_before(job: Job, settings: dict[str, Any], parent: Path | None) -> bool:
    """Whether a command for all phases has replaced this one already, as it is wanted now, and was interrupted in a
    later one."""
    if job.of_one_phase or not is_as_wanted(lineage := job.folder.read() or {}, settings, parent):
        return False
    phases = job.detector["phases"]
    later = [
        PhaseFolder(job.folder.path.parent / name).read() for name in phases[phases.index(job.phase["name"]) + 1 :]
    ]
    return bool(lineage.get("finished") and lineage.get("replaces")) and any(
        other and other.get("replaces") and not other["finished"] for other in later
    )


def refuse_orphans(job: Job, start: Start) -> None:
    """Refuse to train a finished phase on where others began with its model: they would fit none any more.

    Raises:
        UserError: names them.
    """
    phases, name, model = job.detector["phases"], job.phase["name"], job.folder.model
    if not (start.resume and (job.folder.read() or {}).get("finished") and model.exists()):
        return
    digest = sha256(model)
    later = [
        other
        for other in phases[phases.index(name) + 1 :]
        if (found := PhaseFolder(job.folder.path.parent / other).read()) and found["parent_sha256"] == digest
    ]
    if later:
        raise UserError(
            f"phase {name} of run {job.run.name} is finished, and {', '.join(later)} began with its model: choose "
            "another name with run=..., or train all anew with overwrite=true; the last phase may go on alone"
        )


def check_optimized(job: Job) -> None:
    """Refuse an ``optimized_metric`` that none of the detector's phases can log.

    Raises:
        UserError: says what there may be.
    """
    name, phases = job.config["optimized_metric"], job.detector["phases"]
    if name is not None and str(name).partition("/")[0] not in phases:
        raise UserError(
            f"optimized_metric={name} names no phase of detector={job.detector['name']}: it is PHASE/NUMBER, such as "
            f"{phases[-1]}/val_loss, of {', '.join(phases)}"
        )


def check_monitor(job: Job) -> None:
    """Refuse a number that the phase does not log, or that it would keep the worst checkpoint by.

    Raises:
        UserError: names what there is.
    """
    phase: type[Phase] = located(job.phase["module"]["_target_"])
    monitor, mode = job.phase["monitor"], job.phase["mode"]
    usual = {f"{phase.name}/{number}": direction for number, direction in phase.monitors.items()}
    if monitor is not None and usual.get(monitor) != mode:
        raise UserError(
            f"phase.monitor={monitor} with phase.mode={mode}: phase {phase.name} has "
            f"{' or '.join(f'{k} (mode {v})' for k, v in usual.items()) or 'none'}; give the phases of a run one by "
            "one where they differ"
        )
