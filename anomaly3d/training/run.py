"""One phase of one detector of a run: build, train, keep the best."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import Logger

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.base import Detector, build_detector, load_detector
from anomaly3d.errors import UserError
from anomaly3d.networks.batch_norm import share_statistics
from anomaly3d.phases.base import Phase
from anomaly3d.runs.tracking import close_logger, log_model, make_logger, may_log
from anomaly3d.system.files import locked
from anomaly3d.system.instantiate import build, located
from anomaly3d.system.progress import is_leader, say
from anomaly3d.system.quiet import hush
from anomaly3d.system.trainer import make_trainer, resolve_trainer, several_processes
from anomaly3d.system.weights import read_weights
from anomaly3d.training.callbacks.checkpoints import KeepBest, KeepLast, WholeCheckpoints
from anomaly3d.training.callbacks.finite import StopBroken
from anomaly3d.training.callbacks.record import Record
from anomaly3d.training.job import Job, check, name_of, steps_of
from anomaly3d.training.out_of_memory import with_advice

RESUMED = "put another checkpoint in its place, or train the phase anew with overwrite=true"


def train_phase(job: Job) -> float | None:
    """Train a phase of a run unless it is finished; returns the number that a sweep optimises, if there is one.

    Raises:
        UserError: another process trains it, or the job's settings do not fit.
    """
    hush()
    if job.dry or not is_leader():
        return with_advice(train_alone, job)
    with locked(job.folder.path.parent / f".{job.phase['name']}.lock", str(job.folder.path)):
        return with_advice(train_alone, job)


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
            job.folder.write({**record.lineage, "finished": True, "numbers": numbers_of(last, best)})
            log_model(logger, job.folder, start.parent, may_log(logger, "models", job.synthetic))
        trainer.strategy.barrier()  # the other processes begin the next phase with what the first one has written
    except MisconfigurationException as error:
        raise UserError(f"{name}: {error}") from error
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    finally:
        close_logger(logger)
    tell_next(job)
    return optimised(job, numbers_of(last, best))


def numbers_of(last: KeepLast, best: KeepBest | None) -> dict[str, float]:
    """The numbers logged with the state that is kept."""
    if best is None or best.monitor is None or best.best_model_score is None:
        return last.metrics
    return {**last.metrics, **best.numbers, best.monitor: float(best.best_model_score)}


def build_phase(job: Job, parent: Path | None) -> Phase:
    """The LightningModule of the phase, its detector new or its parent's.

    Raises:
        UserError: a detector or optimizer that cannot be.
    """
    torch.manual_seed(job.config["seed"])
    detector = build_detector(job.detector["module"])
    if job.resolution % detector.multiple:
        raise UserError(
            f"{detector.title} takes volumes whose sides are multiples of {detector.multiple}, and "
            f"preprocessing.resolution={job.resolution} is none"
        )
    if parent is None and detector.needs_parent and not job.dry:
        raise UserError(
            f"{detector.title} as it is set here begins with what another has learned: name it with parent=..."
        )
    if parent is not None:
        try:
            detector.begin_with(load_detector(parent))
        except RuntimeError as error:
            raise UserError(
                f"{parent} holds other networks than detector={job.detector['name']} has here: "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
    module = job.phase["module"]
    phase = build(module, "phase config", Phase, recursive=False, detector=detector, seed=job.config["seed"])
    if phase.optimizer is not None and not detector.fits_at_once:
        phase.make_optimizer([torch.nn.Parameter(torch.zeros(1))])  # a mistake in it comes before any work
    return phase


def trainer_settings(job: Job, detector: Detector) -> dict[str, Any]:
    """``conf/trainer`` for this detector.

    Raises:
        UserError: options that do not fit the machine.
    """
    options = resolve_trainer(job.config["trainer"])
    return {**options, "devices": 1, "num_nodes": 1, "strategy": "auto"} if detector.fits_at_once else options


def best_checkpoint(job: Job) -> KeepBest | None:
    """The best state by ``phase.monitor``; None where the last one is kept."""
    monitor, folder = job.phase["monitor"], job.folder.last_checkpoint.parent
    if not monitor:
        return None
    return KeepBest(folder, "best", monitor=monitor, mode=job.phase["mode"], enable_version_counter=False)


def build_trainer(
    job: Job, detector: Detector, options: dict[str, Any], callbacks: list[L.Callback], logger: Logger | None
) -> L.Trainer:
    """The Trainer of a phase, with the callbacks of ``conf/callbacks``."""
    for name, c in job.config["callbacks"].items():
        if c and not isinstance(c, Mapping):
            raise UserError(f"callbacks.{name}={c}: a callback has keys, its _target_ first; null takes it away")
    configured = {name: c for name, c in job.config["callbacks"].items() if c and c.get("monitor", "") is not None}
    callbacks = [*(build(c, f"callbacks.{name}", L.Callback) for name, c in configured.items()), *callbacks]
    if detector.fits and any(isinstance(callback, WeightAveraging) for callback in callbacks):
        raise UserError(f"{detector.title} learns at once, in whole or in part: leave out callbacks=ema")
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
    elif job.of_one_phase:
        say(f"  next: python -m anomaly3d.train +phase={following[0]} {shlex.join([*words, *job.again])}")


def optimised(job: Job, numbers: Mapping[str, float]) -> float | None:
    """``optimized_metric`` of the config, else what checkpoints are kept by, else the first of the phase's monitors.

    None where ``optimized_metric`` is another phase's.

    Args:
        numbers: of ``numbers_of``.

    Raises:
        UserError: there is no such number.
    """
    name: str | None = job.config["optimized_metric"] or job.phase["monitor"]
    if name is None:
        phase: type[Phase] = located(job.phase["module"]["_target_"])
        name = next((f"{phase.name}/{number}" for number in phase.monitors), None)
    others = [phase for phase in job.detector["phases"] if phase != job.phase["name"]]
    if name is None or not job.phase["steps"] or not numbers or name.split("/")[0] in others:
        return None
    if name not in numbers:
        raise UserError(f"optimized_metric={name} is not logged: there are {', '.join(sorted(numbers))}")
    return numbers[name]
