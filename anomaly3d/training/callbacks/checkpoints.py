"""The state of a training after each epoch, for going on after whatever ended it."""

import os

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from anomaly3d.runs.folder import PhaseFolder


class KeepLast(Checkpoint):
    """The state at the end of each epoch as ``last.ckpt``; the one before it stays beside it as ``previous.ckpt``.

    Lightning's ``ModelCheckpoint`` writes its ``last.ckpt`` only when it has also found a better one.
    """

    def __init__(self, folder: PhaseFolder) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last = self.folder.last_checkpoint
        beside = last.with_name(f".{last.name}")
        trainer.save_checkpoint(beside)
        if trainer.is_global_zero:
            if last.exists():
                os.replace(last, self.folder.previous_checkpoint)
            os.replace(beside, last)
