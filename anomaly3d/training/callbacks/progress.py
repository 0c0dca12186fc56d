"""How far the training is."""

from typing import Any

import lightning as L

from anomaly3d.data.module import data_of
from anomaly3d.phases.base import Phase
from anomaly3d.system.progress import Bar, say
from anomaly3d.training.callbacks.numbers import of_phase


class ShowProgress(L.Callback):
    """Steps of training, and after each validation a line with the numbers that matter: the phase's panels."""

    bar: Bar | None = None  # while there is something to show

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps = data_of(trainer).steps_per_epoch
        self.bar = Bar(f"{pl_module.name}, steps", (trainer.max_epochs or 0) * steps, trainer.current_epoch * steps)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert self.bar
        steps = data_of(trainer).steps_per_epoch
        if self.bar.live or batch_idx + 1 < steps:  # in a log, the line of the validation follows
            self.bar.show(trainer.current_epoch * steps + batch_idx + 1)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.bar
        done = (trainer.current_epoch + 1) * data_of(trainer).steps_per_epoch
        assert isinstance(pl_module, Phase)
        logged = of_phase(trainer, pl_module)
        names = [name for _, panel in pl_module.panels for name in panel if name in logged]
        numbers = ", ".join(f"{name.removeprefix('health_')} {float(logged[name]):.4g}" for name in names)
        say(f"{pl_module.name}: step {done}/{self.bar.total}, {self.bar.left(done)}; {numbers}")

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar:
            self.bar.close()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()
