"""One phase of one run: check, prepare, train, keep the best, score the test set, write where it came from."""

import shutil
from pathlib import Path
from typing import Any

import hydra
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig, OmegaConf

from anomaly3d.data import HeadCTDataModule
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.errors import UserError
from anomaly3d.evaluation.callbacks import CollectScores, LogVolumes, ShowProgress, log_evaluation
from anomaly3d.evaluation.health import Health
from anomaly3d.hardware import has_batch_norm, make_trainer, recompute_activations, trainer_options
from anomaly3d.lineage import ORDER, PARENT, PhaseFolder, can_resume, describe, find_parent, require_same_data
from anomaly3d.phases.base import Phase
from anomaly3d.preparation import prepare_from_config
from anomaly3d.progress import is_leader, say
from anomaly3d.quiet import hush
from anomaly3d.tracking import close_logger, log_model, make_logger


def plain_settings(config: DictConfig) -> dict[str, Any]:
    """What decides the outcome of a phase; where and how fast it runs does not belong to it."""
    keys = ("seed", "dataset", "preprocessing", "model", "detector", "phase")
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(k): container[k] for k in keys}


def check(config: DictConfig) -> tuple[PhaseFolder, dict[str, Any], Path | None, bool | None]:
    """Everything that can be wrong before any work: folder, settings, parent, and whether to resume.

    Raises:
        UserError: no phase, another model's parent, a finished run with other settings ...
    """
    if "phase" not in config:
        raise UserError(f"which phase? Add +phase=gan, +phase=encoder or +phase=finetune ({', '.join(ORDER)} in a row)")
    settings = plain_settings(config)
    if config.detector.name != "fanogan":
        raise UserError(
            f"+phase={config.phase.name} belongs to detector=fanogan; fit {config.detector.name} with +phase=fit"
        )
    if config.model.spatial_dims != 3:
        raise UserError("model.spatial_dims must be 3: the networks also take 2, but the data are volumes")
    if config.phase.steps_per_epoch < 1 or config.phase.steps < 1:
        raise UserError("phase.steps and phase.steps_per_epoch must be at least 1")
    if config.phase.steps % config.phase.steps_per_epoch:
        raise UserError(
            f"phase.steps ({config.phase.steps}) must be a multiple of phase.steps_per_epoch "
            f"({config.phase.steps_per_epoch})"
        )
    if config.model.resolution != config.preprocessing.resolution:
        raise UserError(
            f"model.resolution ({config.model.resolution}) and preprocessing.resolution "
            f"({config.preprocessing.resolution}) differ: set both to the same value"
        )
    monitor, mode = config.phase.monitor, config.phase.mode
    usual = {f"{config.phase.name}/val_loss": "min", f"{config.phase.name}/val_pseudo_auc": "max"}
    if monitor is not None and (config.phase.name == "gan" or usual.get(monitor) != mode):
        raise UserError(
            f"phase.monitor={monitor} with phase.mode={mode}: phase {config.phase.name} has "
            + ("none" if config.phase.name == "gan" else " or ".join(f"{k} (mode {v})" for k, v in usual.items()))
            + "; give the phases of a run one by one where they differ"
        )
    run = Path(config.runs_dir) / config.run
    folder = PhaseFolder(run / config.phase.name)
    parent = find_parent(config.phase.name, run, config.parent, settings)
    return folder, settings, parent, False if config.overwrite else can_resume(folder, settings, parent)


def build_phase(config: DictConfig, parent: Path | None) -> Phase:
    """The LightningModule of the phase, its detector new or its parent's.

    Raises:
        UserError: a model or optimizer that cannot be built.
    """
    plain = OmegaConf.to_container(config.model, resolve=True)
    assert isinstance(plain, dict)
    torch.manual_seed(config.seed)
    model = ModelConfig.from_config({str(k): v for k, v in plain.items()})
    detector = FAnoGAN(model, config.detector.kappa)
    if parent is not None:
        detector.load_state_dict(FAnoGAN.load(parent).state_dict())
    phase = hydra.utils.instantiate(config.phase.module, detector=detector, seed=config.seed)
    try:
        phase.optimizer([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        raise UserError(f"phase.module.optimizer={config.phase.module.optimizer}: {error}") from error
    return phase


def train_phase(config: DictConfig) -> int:
    """Train ``config.phase`` and return the command's exit code."""
    hush()
    folder, settings, parent, resume = check(config)
    name = config.phase.name
    if resume is None:
        say(f"{name}: run {config.run} has finished this phase, in {folder.path}; overwrite=true trains it anew")
        return 0
    options, chosen = trainer_options(config.trainer, has_batch_norm(config.model))
    phase = build_phase(config, parent)
    if config.gradient_checkpointing:
        recompute_activations(phase.detector)
    prepared = prepare_from_config(config)
    data = HeadCTDataModule(
        prepared.folder,
        config.phase.batch,
        config.phase.steps_per_epoch,
        config.seed,
        memory_gb=config.memory_gb,
    )
    data.require("train", "validation")
    if parent:
        require_same_data(PhaseFolder(parent.parent).read(), prepared.folder, parent)
    if resume:
        require_same_data(folder.read(), prepared.folder, folder.path)
    keep = ModelCheckpoint(
        folder.last_checkpoint.parent,
        "best",
        monitor=config.phase.monitor,
        save_last=True,
        save_top_k=1 if config.phase.monitor else 0,
        mode=config.phase.mode,
    )
    keep.CHECKPOINT_NAME_LAST = "last"
    collect = CollectScores(folder.path)
    pictures = config.dataset.kind == "phantom" if config.logger.images is None else config.logger.images
    watching = [Health(folder.path, config.callbacks.abort)] if config.callbacks.health else []
    trainer = make_trainer(
        options,
        logger=False,
        callbacks=[*watching, keep, collect, ShowProgress(), LogVolumes(enabled=pictures)],
        max_epochs=config.phase.steps // config.phase.steps_per_epoch,
        enable_progress_bar=False,
        log_every_n_steps=min(10, config.phase.steps_per_epoch),
        default_root_dir=folder.path,
    )
    lineage = describe(settings, prepared.folder, parent)
    leader = is_leader()
    if leader:
        if config.overwrite:
            shutil.rmtree(folder.path, ignore_errors=True)
        folder.write(lineage)
        OmegaConf.save(config, folder.path / "config.yaml", resolve=True)
        count = len(data.split("train"))
        say(f"{name}: {config.phase.steps} steps of {config.phase.batch} volumes from {count} scans; {chosen}")
    logger = make_logger(config, folder, lineage)
    trainer.logger = logger
    try:
        trainer.fit(phase, data, ckpt_path=folder.last_checkpoint if resume else None, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C
        raise KeyboardInterrupt from stop
    if config.phase.monitor and keep.best_model_path:
        best = torch.load(keep.best_model_path, map_location="cpu", weights_only=True)
        phase.load_state_dict(best["state_dict"])
    if trainer.is_global_zero:
        phase.detector.save(folder.model)
        folder.write({**lineage, "finished": True})
        log_model(logger, folder, lineage, pictures if config.logger.models is None else config.logger.models)
    if name != "gan" and not data.split("test").empty:
        trainer.test(phase, data, verbose=False)
        if trainer.is_global_zero:
            log_evaluation(logger, collect.table(), name)
    close_logger(logger)
    if trainer.is_global_zero:
        say(f"{name}: done, in {folder.path}")
    following = [p for p, before in PARENT.items() if before == name]
    if trainer.is_global_zero and following:
        say(f"  next: python -m anomaly3d.train +phase={following[0]} run={config.run}")
    return 0
