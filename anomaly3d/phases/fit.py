"""The phase of every method that needs none of its own: by its loss, or at once."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import data_of
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.phases.base import OptimizerConfig, Phase, beside

DRAWN = 0  # what random numbers are for


class FitPhase(Phase):
    """Minimise ``detector.loss`` over all its parameters, or call ``detector.fit`` once, or, of an ensemble, both."""

    name = "fit"
    question = "Does it learn what is healthy?"
    panels = (
        ("Loss of healthy validation heads", ("val_loss",)),
        ("Pasted anomalies told apart", ("val_pseudo_auc",)),
    )

    def __init__(
        self,
        detector: Detector | Mapping[str, Any],
        optimizer: OptimizerConfig | None = None,
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(detector, optimizer, seed, scheduler=scheduler)
        if self.detector.fits_at_once:
            self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        """One for all parameters, and its schedule; none for a method that learns at once."""
        if self.detector.fits_at_once:
            return []
        return self.scheduled(self.make_optimizer(self.detector.parameters()))

    def on_train_start(self) -> None:
        """Learn what is learned at once.

        Raises:
            UserError: too few scans.
        """
        if not self.detector.fits:
            return
        data = data_of(self.trainer)
        train = data.volumes(data.learns_from)
        if len(train) < self.detector.fewest:
            raise UserError(
                f"{self.detector.title} needs at least {self.detector.fewest} {data.learns_from} scans, and "
                f"{data.prepared.folder} holds {len(train)}"
            )
        self.detector.fit(train, data.volumes("validation"), data.volumes(data.learns_from, "brain_mask"))
        self.detector.to(self.device)  # data lie on the CPU, and so does what was learned from them

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The detector's loss; what it draws at random depends on the step only, so that a resumed run repeats."""
        with self.seeded(step, DRAWN):
            return self.detector.loss(batch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """The loss of a batch; nothing where the method has learned at once."""
        if self.detector.fits_at_once:
            return None
        losses = self.losses(batch, self.global_step)
        self.log_dict({f"fit/{k}": v.detach() for k, v in losses.items()}, batch_size=len(batch["image"]))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """``val_loss`` of healthy validation scans, and how well their scores tell pasted anomalies apart.

        A method that has learned at once has no loss; its mean score stands in.
        """
        healthy = self.detector.quick_score(batch)
        loss = healthy.mean() if self.detector.fits_at_once else self.losses(batch, batch_idx)["loss"]
        self.log_mean("val_loss", loss, len(healthy))
        return self.tell_apart(healthy, self.detector.quick_score({**batch, "image": batch["pseudo"]}))

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        found = self.detector.examine(batch).reconstruction
        return {} if found is None else {"reconstructions": beside(batch["image"], found)}
