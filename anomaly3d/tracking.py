"""Weights & Biases: the phases of a run are one group; nothing that names a machine or a patient leaves it."""

import netrc
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from anomaly3d.lineage import PhaseFolder
from anomaly3d.progress import is_leader, say

PRIVATE = ("root", "scans", "manifest", "data_dir", "runs_dir", "parent")
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


def close_logger(logger: Logger | None) -> None:
    """End the W&B run, so that the next phase in this process begins its own."""
    if isinstance(logger, WandbLogger) and is_leader():
        import wandb

        wandb.finish()
