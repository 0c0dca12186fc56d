"""A training that has broken down ends before it overwrites a state that was good."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from anomaly3d.data.module import data_of
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Phase
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.training.callbacks.numbers import of_phase, of_step


class StopBroken(L.Callback):
    """End the phase where its weights, or its numbers of validation, are not finite: before they are kept.

    Looking costs a wait for the device, so it is done once an epoch; the losses of every step are only counted, on the
    device, to say where it began.
    """

    def __init__(self, folder: PhaseFolder) -> None:
        self.folder = folder
        self.finite: Tensor | None = None  # steps of this epoch before the first whose loss is none

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if losses := list(of_step(trainer, pl_module).values()):
            good = finite(losses)
            before = good.new_zeros((), dtype=torch.long) if self.finite is None else self.finite
            self.finite = before + (good & (before == batch_idx))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer, pl_module)  # where an epoch has no validation
        self.finite = None

    def look(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise where something is not finite.

        Raises:
            UserError: names the phase, the step, the last good state and the remedy.
        """
        assert isinstance(pl_module, Phase)
        weights = [p for p in pl_module.detector.parameters() if p.requires_grad]
        judged = [v for k, v in of_phase(trainer, pl_module).items() if k.startswith("val_")]
        if pl_module.detector.fits_at_once or (finite(weights) and finite(judged)):
            return
        steps = data_of(trainer).steps_per_epoch
        first = min(steps if self.finite is None else int(self.finite), steps - 1) + 1
        last = self.folder.last_checkpoint
        before = trainer.current_epoch * steps
        good, anew = "there is no good state before it", ""
        if last.exists():
            good, anew = f"the last good state is {last} (step {before})", " and train it anew with overwrite=true"
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        raise UserError(
            f"phase {pl_module.name} broke down at step {before + first}: its loss or weights are not finite any more, "
            f"and nothing of that was kept; {good}; lower the learning rate ({rate:g} now){anew}"
        )


def finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all their numbers are, as a tensor on their device."""
    each = [tensor.detach().isfinite().all() for tensor in tensors]
    return torch.stack(each).all() if each else torch.tensor(True)
