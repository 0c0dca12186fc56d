"""An end to a phase that no longer gets better."""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from anomaly3d.data.module import data_of
from anomaly3d.errors import UserError
from anomaly3d.system.progress import say


class StopEarly(EarlyStopping):
    """Lightning's, which tells a user what there is to watch.

    Raises:
        UserError: at the end of the first epoch, where the phase has no number called ``monitor``.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor not in (there := trainer.callback_metrics):
            raise UserError(f"callbacks.stop.monitor={self.monitor}: this phase has {', '.join(sorted(there))}")
        super().on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say it, also where an earlier call had stopped and this one has nothing more to train."""
        if self.stopped_epoch > 0:
            steps = (self.stopped_epoch + 1) * data_of(trainer).steps_per_epoch
            say(
                f"stopped early after step {steps}: {self.monitor} was no better for {self.patience} validations "
                "(callbacks.stop.patience); overwrite=true with other settings trains anew"
            )
