"""One phase of one detector of a run: check, build, train, keep the best, write where it came from."""

import platform
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, WandbLogger

from anomaly3d.data.module import HeadCTDataModule, data_of
from anomaly3d.detectors.base import Detector, build_detector, load_detector
from anomaly3d.errors import UserError
from anomaly3d.networks.batch_norm import share_statistics
from anomaly3d.phases.base import Phase
from anomaly3d.preprocessing.cohort import PreparedCohort, Study
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.runs.lineage import can_resume, describe, find_parent, is_replacing, require_same_data
from anomaly3d.runs.tracking import close_logger, log_model, make_logger, may_log, scrub
from anomaly3d.system.files import locked, remove_leftovers, written_whole
from anomaly3d.system.instantiate import build, check_targets, located
from anomaly3d.system.memory import ran_out, release_memory
from anomaly3d.system.progress import is_leader, say
from anomaly3d.system.quiet import hush
from anomaly3d.system.trainer import describe_trainer, make_trainer, resolve_trainer, several_processes
from anomaly3d.system.weights import read_weights
from anomaly3d.training.callbacks.checkpoints import KeepLast, WholeCheckpoints
from anomaly3d.training.callbacks.finite import StopBroken

RESUMED = "put another checkpoint in its place, or train the phase anew with overwrite=true"
BUILT = ("callbacks", "data", "detector", "logger", "phase", "trainer")  # parts of the config that describe objects
TRIAL = 5  # steps at most: a generator may have its first in the fifth
LESS_MEMORY = "gradient_checkpointing=true, a smaller model or preprocessing.resolution, or memory_gb=0 take less"
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
    def dry(self) -> bool:
        """Whether only a few batches are tried, and nothing kept."""
        return bool(self.config["trainer"].get("fast_dev_run"))

    def settings(self) -> dict[str, Any]:
        """What decides the outcome of the phase; where and how fast it runs does not belong to it."""
        module = dict(self.detector["module"])
        model = module.pop("model", None)  # of conf/model, where the detector has networks of that group
        keys = ("seed", "dataset", "preprocessing", "data", "phase")
        acting = {name: c for name, c in self.config["callbacks"].items() if name not in WATCHING}
        return {
            **{k: self.config[k] for k in keys},
            "model": model,
            "detector": {**self.detector, "module": module},
            **({"callbacks": acting} if acting else {}),
        }


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
    if not isinstance(phase["batch"], int) or phase["batch"] < 1:
        raise UserError(f"phase.batch={phase['batch']}: a batch is a whole number of volumes, at least 1")
    steps, per_epoch = phase["steps"], phase["steps_per_epoch"]
    if per_epoch < 1 or steps < (0 if job.config["parent"] else 1):
        raise UserError(
            "phase.steps and phase.steps_per_epoch must be at least 1; phase.steps=0 is for a detector that takes the "
            "networks of parent=... as they are"
        )
    if steps % per_epoch:
        raise UserError(f"phase.steps ({steps}) must be a multiple of phase.steps_per_epoch ({per_epoch})")
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
    if job.config["overwrite"] and not is_replacing(job.folder, settings, parent):
        return Start(settings, parent, False)
    return Start(settings, parent, can_resume(job.folder, settings, parent))


def build_phase(job: Job, parent: Path | None) -> Phase:
    """The LightningModule of the phase, its detector new or its parent's.

    Raises:
        UserError: a detector or optimizer that cannot be.
    """
    torch.manual_seed(job.config["seed"])
    detector = build_detector(job.detector["module"])
    if parent is not None:
        detector.begin_with(load_detector(parent))
    module = job.phase["module"]
    phase = build(module, "phase config", Phase, recursive=False, detector=detector, seed=job.config["seed"])
    if phase.optimizer is not None and not detector.fits_at_once:
        phase.make_optimizer([torch.nn.Parameter(torch.zeros(1))])  # a mistake in it comes before any work
    return phase


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


def trainer_settings(job: Job, detector: Detector) -> dict[str, Any]:
    """``conf/trainer`` for this detector.

    Raises:
        UserError: options that do not fit the machine.
    """
    options = resolve_trainer(job.config["trainer"])
    return {**options, "devices": 1, "num_nodes": 1, "strategy": "auto"} if detector.fits_at_once else options


class Record(L.Callback):
    """When the data are there and training begins: check that they are the parent's, and write down what begins.

    Args:
        options: of the trainer.
    """

    def __init__(self, job: Job, start: Start, options: Mapping[str, Any]) -> None:
        self.job, self.start, self.options = job, start, options
        self.lineage: dict[str, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = data_of(trainer)
        folder, parent = self.job.folder, self.start.parent
        if parent:
            require_same_data(PhaseFolder(parent.parent).read(), data.prepared, parent)
        if self.start.resume:
            require_same_data(folder.read(), data.prepared, folder.path)
        assert isinstance(pl_module, Phase)
        self.lineage = {
            **describe(self.start.settings, data.prepared, parent),
            "made_with": {
                "torch": str(torch.__version__),  # with what it was built for
                **{name: version(name) for name in ("lightning", "monai", "numpy")},
                "python": platform.python_version(),
                "hardware": describe_trainer(self.options, trainer.world_size),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            "can_score": pl_module.can_score or self.job.phase["name"] == self.job.detector["phases"][-1],
            "title": pl_module.detector.title,
            "role": pl_module.detector.role,
            "reads": list(pl_module.detector.reads),
            "synthetic": self.job.synthetic,
            "replaces": bool(self.job.config["overwrite"]),
            "wandb": trainer.logger.version if isinstance(trainer.logger, WandbLogger) else None,
        }
        if trainer.is_global_zero and not self.job.dry:
            if self.job.config["overwrite"] and folder.path.exists():
                words = "goes on where overwrite=true was interrupted" if self.start.resume else "begins anew"
                say(f"{name_of(self.job)}: {words}")
                if not self.start.resume:
                    clear(folder.path)
            remove_leftovers(folder.path)
            folder.write(self.lineage)
            write_yaml(folder.path / "config.yaml", dict(self.job.config))
            write_yaml(folder.path / "overrides.yaml", list(self.job.typed))
            if trainer.logger:
                trainer.logger.log_hyperparams(scrub({k: v for k, v in self.lineage.items() if k != "finished"}))
        steps, batch, scans = (
            (trainer.max_epochs or 0) * data.steps_per_epoch,
            data.batch,
            len(data.split(data.learns_from)),
        )
        what = f"{steps} steps of {batch} volumes" if not pl_module.detector.fits_at_once else "at once"
        say(f"{name_of(self.job)}: {what} from {scans} scans; {self.lineage['made_with']['hardware']}")


def clear(folder: Path) -> None:
    """Remove what an earlier training left in a phase's folder, but for loggers' own folders."""
    for path in folder.glob("*"):
        if path.is_dir() and not path.name.startswith("version_"):
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def write_yaml(path: Path, value: Any) -> None:
    """Write plain values."""
    with written_whole(path) as beside:
        beside.write_text(yaml.safe_dump(value, sort_keys=False))


def name_of(job: Job) -> str:
    """The phase for messages; of a detector with one phase, the detector."""
    return str(job.phase["name"] if len(job.detector["phases"]) > 1 else job.detector["name"])


def train_phase(job: Job) -> float | None:
    """Train a phase of a run unless it is finished; returns the number that a sweep optimises, if there is one.

    Raises:
        UserError: another process trains it, or the job's settings do not fit.
    """
    hush()
    if job.dry or not is_leader():
        return train_in_memory(job)
    with locked(job.folder.path.parent / f".{job.phase['name']}.lock", str(job.folder.path)):
        return train_in_memory(job)


def train_in_memory(job: Job) -> float | None:
    """``train_alone``; where memory does not do, the sentence says which batch would fit.

    Raises:
        UserError: memory ran out, or as ``train_alone``.
    """
    try:
        return train_alone(job)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        cause = str(error).splitlines()[0]
    size = job.phase["batch"]  # only here is what the failed step held free: its traceback is gone
    if several_processes(resolve_trainer(job.config["trainer"])):
        advice = f"try phase.batch={size // 2}" if size > 1 else LESS_MEMORY
    elif fits := batch_that_fits(job):
        anew = " with overwrite=true" if job.folder.learned() else ""
        advice = f"phase.batch={fits}{anew} fits, as a try of it has shown"
    else:
        advice = f"not even phase.batch=1 fits: {LESS_MEMORY}"
    raise UserError(f"out of memory with phase.batch={size}: {advice} ({cause})")


def batch_that_fits(job: Job) -> int | None:
    """The largest of half the batch, a quarter ... of which a few steps go through on this machine; None for none."""
    size = job.phase["batch"]
    while size := size // 2:
        release_memory()
        torch.cuda.empty_cache()  # without a GPU nothing
        say(f"out of memory: trying phase.batch={size}")
        tried = {
            "phase": {**job.phase, "batch": size},
            "trainer": {**job.config["trainer"], "fast_dev_run": TRIAL},
            "callbacks": {},
        }
        try:
            train_alone(replace(job, config={**job.config, **tried}))
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        else:
            return int(size)
    return None


def train_alone(job: Job) -> float | None:
    """``train_phase``, when nobody else trains it."""
    start, name = check(job), name_of(job)
    if start.resume is None:
        say(f"{name}: run {job.run.name} has finished it, in {job.folder.path}; overwrite=true trains it anew")
        return optimised(job, (job.folder.read() or {}).get("numbers", {}))
    checkpoint = job.folder.whole_checkpoint() if start.resume else None
    if checkpoint:
        read_weights(checkpoint, RESUMED)
    phase = build_phase(job, start.parent)
    if job.config["gradient_checkpointing"]:
        phase.detector.recompute_activations()
    options = trainer_settings(job, phase.detector)
    if several_processes(options):
        share_statistics(phase.detector)
    best, last, record = best_checkpoint(job), KeepLast(job.folder), Record(job, start, options)
    logger = None
    if not job.dry:
        before = ((job.folder.read() or {}) if start.resume else {}).get("wandb")
        logger = make_logger(job.config["logger"], job.run, f"{job.detector['name']}/{job.phase['name']}", before)
    keep = [] if job.dry else [StopBroken(job.folder), *([best] if best else []), last]
    try:
        trainer = build_trainer(job, phase.detector, options, [record, *keep], logger)
        if checkpoint == job.folder.previous_checkpoint:
            say(f"{name}: {job.folder.last_checkpoint} is damaged or missing; {checkpoint.name} is taken in its place")
        trainer.fit(phase, build_data(job, phase.detector), ckpt_path=checkpoint, weights_only=True)
        if job.dry:
            say(f"{name}: a few batches went through; nothing is kept (trainer.fast_dev_run)")
            return None
        if trainer.is_global_zero:
            if job.phase["steps"]:
                chosen = (best and best.best_model_path) or job.folder.last_checkpoint  # it holds averages, if any
                phase.load_state_dict(read_weights(Path(chosen), RESUMED)["state_dict"])
            phase.detector.save(job.folder.model)
            job.folder.write({**record.lineage, "finished": True, "numbers": last.metrics})
            log_model(logger, job.folder, start.parent, may_log(logger, "models", job.synthetic))
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    finally:
        close_logger(logger)
    tell_next(job)
    return optimised(job, last.metrics)


def best_checkpoint(job: Job) -> ModelCheckpoint | None:
    """The best state by ``phase.monitor``; None where the last one is kept."""
    monitor, folder = job.phase["monitor"], job.folder.last_checkpoint.parent
    if not monitor:
        return None
    return ModelCheckpoint(folder, "best", monitor=monitor, mode=job.phase["mode"], enable_version_counter=False)


def build_trainer(
    job: Job, detector: Detector, options: dict[str, Any], callbacks: list[L.Callback], logger: Logger | None
) -> L.Trainer:
    """The Trainer of a phase, with the callbacks of ``conf/callbacks``."""
    configured = {name: c for name, c in job.config["callbacks"].items() if c and c.get("monitor", "") is not None}
    callbacks = [*(build(c, f"callbacks.{name}", L.Callback) for name, c in configured.items()), *callbacks]
    steps, per_epoch = steps_of(job, detector)
    return make_trainer(
        options,
        logger=logger or False,
        callbacks=callbacks,
        plugins=[WholeCheckpoints()],
        max_epochs=steps // per_epoch,
        log_every_n_steps=min(10, per_epoch),
        inference_mode=not detector.needs_gradients,
        default_root_dir=str(job.folder.path),
    )


def steps_of(job: Job, detector: Detector) -> tuple[int, int]:
    """Steps of the phase and between two validations; one for a detector that learns at once."""
    return (1, 1) if detector.fits_at_once else (job.phase["steps"], job.phase["steps_per_epoch"])


def build_data(job: Job, detector: Detector) -> HeadCTDataModule:
    """The data module of a phase."""
    transforms = job.config["data"]["transforms"]
    return HeadCTDataModule(
        job.source,
        job.phase["batch"],
        steps_of(job, detector)[1],
        job.config["seed"],
        learns_from=detector.learns_from,
        reads=(*detector.reads, *detector.taught_with),
        transforms=build(transforms, "data.transforms") if transforms else None,
        memory_gb=job.config["memory_gb"],
        synthetic=job.synthetic,
        monitored=detector.judged_by,
    )


def tell_next(job: Job) -> None:
    """Say that a phase is done, and which comes next; the run remembers what else was typed."""
    say(f"{name_of(job)}: done, in {job.folder.path}")
    if not job.typed:  # a control that belongs to an evaluation
        return
    phases = job.detector["phases"]
    rest = phases[phases.index(job.phase["name"]) + 1 :]
    following = [phase for phase in rest if phase not in job.detector.get("on_request", [])]
    words = [f"run={job.run.name}", *([f"runs_dir={job.run.parent}"] if str(job.run.parent) != "runs" else [])]
    if not following:
        code = [text for text in job.again if text.startswith(("plugins=", "hydra."))]
        say(f"  next: python -m anomaly3d.evaluate {shlex.join([*words, *code])}")
    elif any(text.startswith("+phase=") for text in job.typed):
        say(f"  next: python -m anomaly3d.train +phase={following[0]} {shlex.join([*words, *job.again])}")


def optimised(job: Job, numbers: Mapping[str, float]) -> float | None:
    """``optimized_metric`` of the config, else what checkpoints are kept by, else the first of the phase's monitors.

    None where ``optimized_metric`` is another phase's.

    Args:
        numbers: those last logged.

    Raises:
        UserError: there is no such number.
    """
    name = job.config["optimized_metric"] or job.phase["monitor"]
    if name is None:
        phase: type[Phase] = located(job.phase["module"]["_target_"])
        name = next((f"{phase.name}/{number}" for number in phase.monitors), None)
    others = [phase for phase in job.detector["phases"] if phase != job.phase["name"]]
    if name is None or not job.phase["steps"] or not numbers or name.split("/")[0] in others:
        return None
    if name not in numbers:
        raise UserError(f"optimized_metric={name} is not logged: there are {', '.join(sorted(numbers))}")
    return numbers[name]
