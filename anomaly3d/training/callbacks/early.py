"""An end to a phase that no longer gets better."""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from anomaly3d.errors import UserError


class StopEarly(EarlyStopping):
    """Lightning's, which tells a user what there is to watch.

    Raises:
        UserError: at the end of the first epoch, where the phase has no number called ``monitor``.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.monitor not in (there := trainer.callback_metrics):
            raise UserError(f"callbacks.stop.monitor={self.monitor}: this phase has {', '.join(sorted(there))}")
        super().on_train_epoch_end(trainer, pl_module)
