"""Every number of a training in one table beside the run, whatever logger there is."""

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from torch import Tensor

from anomaly3d.data.module import data_of
from anomaly3d.phases.base import Phase
from anomaly3d.system.files import written_whole

FILE = "training.csv"


class KeepNumbers(L.Callback):
    """A row in ``training.csv`` of the phase after each validation: the step, and the phase's numbers by name.

    Those of training steps are means since the row before, over all processes; a resumed phase goes on with the table.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, Tensor] = {}
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for name, value in of_step(trainer, pl_module).items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
        self.batches += 1

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = (trainer.current_epoch + 1) * data_of(trainer).steps_per_epoch
        means = {
            name: float(trainer.strategy.reduce(total, reduce_op="mean")) / self.batches
            for name, total in self.sums.items()
        }
        measured = {name: float(v) for name, v in of_phase(trainer, pl_module).items() if name not in means}
        self.rows = [row for row in self.rows if row["step"] < step]
        self.rows.append({"step": step, **means, **measured})
        self.sums, self.batches = {}, 0
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            with written_whole(Path(trainer.default_root_dir) / FILE) as path:
                pd.DataFrame(self.rows).to_csv(path, index=False, float_format="%.6g")


def of_phase(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Tensor]:
    """The phase's numbers that are logged, by name."""
    assert isinstance(pl_module, Phase)
    prefix = f"{pl_module.name}/"
    return {k.removeprefix(prefix): v for k, v in trainer.callback_metrics.items() if k.startswith(prefix)}


def of_step(trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Tensor]:
    """Those that a training step logs."""
    return {k: v for k, v in of_phase(trainer, pl_module).items() if not k.startswith(("val_", "health_"))}
