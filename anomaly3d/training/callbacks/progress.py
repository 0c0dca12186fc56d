"""How far the training is."""

from typing import Any

import lightning as L

from anomaly3d.data.module import data_of
from anomaly3d.system.progress import Bar, say


class ShowProgress(L.Callback):
    """Steps of training: a live bar in a terminal; in a log a line after each validation."""

    bar: Bar | None = None  # while there is something to show

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = data_of(trainer).steps_per_epoch
        self.bar = Bar(
            f"{pl_module.name}, steps", (trainer.max_epochs or 1) * steps, trainer.current_epoch * steps, lines=False
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.bar
        self.bar.show(trainer.current_epoch * data_of(trainer).steps_per_epoch + batch_idx + 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.bar
        done = (trainer.current_epoch + 1) * data_of(trainer).steps_per_epoch
        names = sorted(k for k in trainer.callback_metrics if k.startswith(f"{pl_module.name}/"))
        numbers = ", ".join(f"{k.split('/')[1]} {float(trainer.callback_metrics[k]):.4g}" for k in names)
        say(f"{pl_module.name}: step {done}/{self.bar.total}, {self.bar.left(done)}; {numbers}")

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar:
            self.bar.close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()
