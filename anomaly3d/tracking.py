"""Weights & Biases: the phases of a run are one group; nothing that names a machine or a patient leaves it."""

import netrc
import os
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from anomaly3d.files import sha256
from anomaly3d.lineage import PARENT, PhaseFolder, flatten
from anomaly3d.progress import is_leader, say

PRIVATE = ("root", "scans", "manifest", "data_dir", "runs_dir", "parent", "mask_command", "cohort")
LOGIN_TIMEOUT = 20  # seconds


def logged_in() -> bool:
    """Whether a W&B key is known, without asking anybody."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def scrub(value: Any) -> Any:
    """A config without keys that hold places or file names."""
    if isinstance(value, dict):
        return {k: scrub(v) for k, v in value.items() if k not in PRIVATE}
    return value


def make_logger(config: DictConfig, folder: PhaseFolder, lineage: dict[str, Any]) -> Logger | None:
    """The logger of a phase, or None for none. Offline unless somebody is logged in; never a prompt."""
    if not config.logger.enabled:
        return None
    import wandb

    mode = config.logger.mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="",
        init_timeout=LOGIN_TIMEOUT,
        program="anomaly3d.train",
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
    )
    place = Path(config.runs_dir) / config.run
    place.mkdir(parents=True, exist_ok=True)

    def logger(mode: str) -> WandbLogger:
        made = WandbLogger(
            name=f"{config.run}/{folder.path.name}",
            save_dir=place,
            project=config.logger.project,
            entity=config.logger.entity,
            group=config.run,
            job_type=folder.path.name,
            offline=mode != "online",
            config=scrub({k: v for k, v in lineage.items() if k != "finished"}),
            settings=settings,
        )
        made._wandb_init.pop("anonymous", None)  # wandb warns of the key that Lightning 2.6 always passes
        return made

    chosen = logger(mode)
    if is_leader():
        try:
            _ = chosen.experiment  # starts the run now, so that a missing network is known before any training
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            say(f"W&B is out of reach ({type(error).__name__}): this run is kept offline under {place / 'wandb'}")
            wandb.teardown()
            chosen = logger("offline")
    return chosen


def log_model(logger: Logger | None, folder: PhaseFolder, lineage: dict[str, Any], upload: bool) -> None:
    """Digests of the phase's networks and of its parent's; where ``upload``, the networks as an artifact.

    The artifact is linked to the parent's. Offline it would only be a second copy on this disk.

    Args:
        upload: whether networks may leave this machine: a generator has learned its training scans.
    """
    if not isinstance(logger, WandbLogger) or not is_leader():
        return
    import wandb

    run, digest = logger.experiment, sha256(folder.model)
    run.summary.update({"model_sha256": digest, "parent_sha256": lineage["parent_sha256"]})
    if run.settings.mode != "online" or not upload:
        return
    name = str(run.group)
    if parent := PARENT[folder.path.name]:
        link(run, f"{name}-{parent}")
    artifact = wandb.Artifact(f"{name}-{folder.path.name}", "model", metadata={"sha256": digest})
    artifact.add_file(str(folder.model))
    run.log_artifact(artifact)


def link(run: Any, artifact: str) -> None:
    """Say that a run used the latest version of an artifact; one that W&B does not know is not an error here."""
    import wandb

    try:
        run.use_artifact(f"{artifact}:latest")
    except (wandb.errors.Error, ValueError):
        say(f"W&B does not know {artifact}: this run is not linked to it")


def log_report(
    config: DictConfig,
    stage: str,
    lineage: dict[str, Any],
    metrics: dict[str, Any],
    table: pd.DataFrame,
    figures: dict[str, Path],
) -> None:
    """An evaluation as a W&B run of the group: every number, the figures, a table of scans without their names.

    Args:
        stage: the phase or detector that was evaluated.
        table: rescored test scans.
        figures: files by name; those that show scans are left out by the caller.
    """
    logger = make_logger(config, PhaseFolder(Path(config.runs_dir) / config.run / "evaluation"), lineage)
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    run = logger.experiment
    numbers = {k: v for k, v in flatten(metrics, "evaluation/").items() if isinstance(v, int | float)}
    run.summary.update(numbers)
    known = ("cohort", "site", "group", "label", "lesions", "lesion_ml")
    scans = table[[c for c in table if c in known or pd.api.types.is_float_dtype(table[c])]]
    pictures = {f"evaluation/{n}": wandb.Image(str(f.with_suffix(".png"))) for n, f in figures.items()}
    run.log({"evaluation/scans": wandb.Table(dataframe=scans.reset_index(drop=True)), **pictures})
    if run.settings.mode == "online":
        link(run, f"{config.run}-{stage}")
        artifact = wandb.Artifact(f"{config.run}-{stage}-evaluation", "evaluation")
        artifact.add(wandb.Table(dataframe=scans.reset_index(drop=True)), "scans")
        run.log_artifact(artifact)
    close_logger(logger)


def close_logger(logger: Logger | None) -> None:
    """End the W&B run, so that the next phase in this process begins its own."""
    if isinstance(logger, WandbLogger) and is_leader():
        import wandb

        wandb.finish()
