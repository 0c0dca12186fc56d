"""The state of a training after each epoch, for going on after whatever ended it."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.system.weights import write_weights

PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")  # in the state of Lightning's best checkpoint


def logged(trainer: L.Trainer) -> dict[str, float]:
    """The numbers last logged, by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints; it would write them elsewhere first and copy them, which a full disk cuts short."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        write_weights(Path(path), checkpoint)


class KeepBest(ModelCheckpoint):
    """The best state by a phase's monitor, ``best.ckpt``, also in a folder that was moved or copied since.

    Lightning's own goes by absolute paths: elsewhere it forgets how good the best was, and takes its weights from the
    old folder. ``numbers`` are those logged when it was the best.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.numbers: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        before = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        if self.best_model_score is not before:
            self.numbers = logged(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "numbers": self.numbers}

    @property
    def state_key(self) -> str:
        """As that of Lightning's own, so that checkpoints of earlier versions are gone on from."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.numbers = state_dict.get("numbers", {})  # earlier versions kept none

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in PATHS if name in state_dict}
        scores = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})


class KeepLast(Checkpoint):
    """The state at the end of each epoch as ``last.ckpt``; the one before it stays beside it as ``previous.ckpt``.

    Lightning's ``ModelCheckpoint`` writes its ``last.ckpt`` only when it has also found a better one. Torch's random
    generators, and the numbers last logged, ``metrics``, which Lightning leaves out, are in it too.
    """

    def __init__(self, folder: PhaseFolder) -> None:
        self.folder = folder
        self.metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        on_gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        return {"cpu": torch.get_rng_state(), "cuda": on_gpu, "metrics": self.metrics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.metrics = state_dict["metrics"]
        torch.set_rng_state(state_dict["cpu"].cpu())
        if state_dict["cuda"] is not None and torch.cuda.is_available():
            torch.cuda.set_rng_state(state_dict["cuda"].cpu())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What had been stopped early stays so, though it was ended before its model was written."""
        stops = (c for c in trainer.callbacks if isinstance(c, EarlyStopping))  # type: ignore[attr-defined]
        trainer.should_stop = trainer.should_stop or any(stop.stopped_epoch > 0 for stop in stops)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metrics = logged(trainer)
        last = self.folder.last_checkpoint
        beside = last.with_name(f".{last.name}")
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            if last.exists():
                os.replace(last, self.folder.previous_checkpoint)
            os.replace(beside, last)
