"""What begins is written down: where a phase comes from, and the settings that made it."""

import platform
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

from anomaly3d.data.module import data_of
from anomaly3d.phases.base import Phase
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.runs.lineage import describe, require_same_data
from anomaly3d.runs.tracking import scrub
from anomaly3d.system.files import remove_leftovers, written_whole
from anomaly3d.system.progress import say
from anomaly3d.system.trainer import describe_trainer
from anomaly3d.training.job import Job, Start, name_of


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
        before: dict[str, Any] = {}
        if self.start.resume:
            before = folder.read() or {}
            require_same_data(before, data.prepared, folder.path)
            before = before.get("made_with", {})
        if (began := before.get("processes", trainer.world_size)) != trainer.world_size:
            say(
                f"{name_of(self.job)}: begun with {began} processes, it goes on with {trainer.world_size}: a step now "
                f"learns from {data.batch * trainer.world_size} volumes and not {data.batch * began}"
            )
        assert isinstance(pl_module, Phase)
        self.lineage = {
            **describe(self.start.settings, data.prepared, parent),
            "made_with": {
                "torch": str(torch.__version__),  # with what it was built for
                **{name: version(name) for name in ("lightning", "monai", "numpy")},
                "python": platform.python_version(),
                "hardware": describe_trainer(self.options, trainer.world_size),
                "processes": trainer.world_size,
                **({"began_with": before["hardware"]} if began != trainer.world_size else {}),
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
