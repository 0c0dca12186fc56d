"""ROC and precision-recall curves in Weights & Biases while a detector trains, on pasted anomalies."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger

from anomaly3d.phases.base import Phase
from anomaly3d.runs.tracking import curves, unless_silent


class LogCurves(L.Callback):
    """After each validation: how scores tell healthy scans from the same ones with something pasted in.

    No test scan is looked at; their curves belong to ``anomaly3d.evaluate``.
    """

    def __init__(self) -> None:
        self.healthy: list[float] = []
        self.pseudo: list[float] = []
        self.silent = False  # the server does not answer: each try takes most of a minute

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs:
            self.healthy += outputs["healthy"].tolist()
            self.pseudo += outputs["pseudo"].tolist()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts: list[Any] = [(self.healthy, self.pseudo)]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, (self.healthy, self.pseudo))
        healthy, pseudo = ([score for part in parts for score in part[kind]] for kind in (0, 1))
        self.healthy, self.pseudo = [], []
        if not healthy or self.silent or not trainer.is_global_zero or not isinstance(trainer.logger, WandbLogger):
            return
        assert isinstance(pl_module, Phase)
        labels = [0] * len(healthy) + [1] * len(pseudo)
        self.silent = True
        with unless_silent("ROC and precision-recall curves of this and later epochs"):
            trainer.logger.experiment.log(curves(labels, healthy + pseudo, f"{pl_module.name}/val_pseudo"))
            self.silent = False
