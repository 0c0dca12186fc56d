"""What the phases share: the detector they train, what is frozen, seeded noise, validation, and predicting."""

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import BinaryAUROC

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.base import Detector, Findings, build_detector
from anomaly3d.errors import UserError
from anomaly3d.system.device import memory_format
from anomaly3d.system.instantiate import build

OptimizerConfig = Mapping[str, Any] | Callable[..., Optimizer]  # of ``conf/phase``, or what it builds
TOLD, SHOWN = 6, 7  # what random numbers are for, beside a phase's own purposes
JUMP = 5.0  # times its last value: a number that changes so fast between validations


@dataclass(frozen=True)
class Alarm:
    """A number that should stay between ``low`` and ``high``, and what it means when it does not.

    Args:
        after: validations that it is given to settle.
        jump: also alarm when the number grows to ``JUMP`` times its last value.
    """

    number: str
    low: float
    high: float
    words: str
    after: int = 2
    jump: bool = False

    def check(self, values: list[float]) -> str | None:
        """The alarm for the last of the values, if it is one."""
        last = values[-1]
        if not math.isfinite(last):
            return f"{self.number} is not a number any more: training has broken down; lower the learning rate"
        if len(values) <= self.after:
            return None
        if not self.low <= last <= self.high:
            return f"{self.number} is {last:.3g}, usual is {self.low:g} to {self.high:g}: {self.words}"
        if self.jump and abs(last) > JUMP * max(abs(values[-2]), 1e-6):
            return f"{self.number} went from {values[-2]:.3g} to {last:.3g} at once: {self.words}"
        return None


def freeze(module: nn.Module) -> None:
    """No gradients, and ``eval()``: running statistics of BatchNorm must not drift either."""
    module.requires_grad_(False)
    module.eval()


def beside(x: Tensor, reconstruction: Tensor) -> list[list[Tensor]]:
    """Each scan of a batch ``(B, 1, D, H, W)`` with its reconstruction and their absolute difference."""
    return [[a[0], b[0], (a - b)[0].abs() - 1] for a, b in zip(x, reconstruction, strict=True)]


class Predicting(L.LightningModule):
    """``predict_step`` gives a detector's findings on a batch; a callback writes them."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def predict_step(self, batch: Batch, batch_idx: int) -> Findings:
        """The findings on the CPU: scores float64, volumes float32."""
        found = self.detector.examine(batch)
        return Findings(
            {k: v.detach().cpu().double() for k, v in found.scores.items()},
            None if found.reconstruction is None else found.reconstruction.detach().float().cpu(),
            {k: v.detach().float().cpu() for k, v in found.maps.items()},
        )


class Phase(L.LightningModule):
    """A phase trains some networks of ``detector`` and keeps the others frozen.

    Class attributes: ``monitors``, the logged numbers that checkpoints may be kept by, with their direction;
    ``alarms``, what is alarming among its numbers; ``can_score``, whether the detector is of use after it; ``panels``,
    titles and numbers of its plots on a dashboard, under ``question``.

    Args:
        detector: as built, or ``module`` of ``conf/detector``.
        optimizer: partial optimizer, or its config.
        scheduler: config of a partial learning-rate scheduler that counts batches, None for none.
        frozen: names of the detector's networks that this phase must not change.
    """

    name: str
    monitors: ClassVar[dict[str, str]] = {"val_loss": "min", "val_pseudo_auc": "max"}
    alarms: ClassVar[tuple[Alarm, ...]] = ()
    can_score = True
    question = ""
    panels: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = ()
    fixed_statistics: tuple[str, ...] = ()  # networks whose BatchNorm uses running statistics, even when trained
    detector: Detector

    def __init__(
        self,
        detector: Detector | Mapping[str, Any],
        optimizer: OptimizerConfig | None,
        seed: int,
        frozen: tuple[str, ...] = (),
        scheduler: Mapping[str, Any] | None = None,
        **hyperparameters: Any,
    ) -> None:
        super().__init__()
        self.detector = detector if isinstance(detector, Detector) else build_detector(detector)
        plain: dict[str, Any] = {"optimizer": dict(optimizer)} if isinstance(optimizer, Mapping) else {}
        if scheduler:
            plain["scheduler"] = dict(scheduler)
        self.save_hyperparameters(
            {"detector": self.detector.config, "seed": seed, **plain, **hyperparameters}, logger=False
        )
        self.optimizer, self.scheduler, self.frozen, self.seed = optimizer, scheduler, frozen, seed
        self.pseudo_auc = BinaryAUROC()
        self.means = nn.ModuleDict()  # of validation, by name
        for network in frozen:
            freeze(getattr(self.detector, network))

    def make_optimizer(self, parameters: Any, config: OptimizerConfig | None = None) -> Optimizer:
        """The optimizer of some parameters.

        Args:
            config: another than the phase's own.

        Raises:
            UserError: its config is wrong.
        """
        config = config or self.optimizer
        assert config is not None, f"phase {self.name} has no optimizer"
        made = config if callable(config) else build(config, "phase.module.optimizer")
        try:
            return made(parameters)
        except (TypeError, ValueError) as error:
            raise UserError(f"phase.module.optimizer={config}: {error}") from error

    def scheduled(self, optimizer: Optimizer) -> Any:
        """An optimizer with its learning-rate schedule, as Lightning takes them.

        Raises:
            UserError: the schedule's config is wrong.
        """
        if self.scheduler is None:
            return {"optimizer": optimizer}
        made = build(self.scheduler, "phase.module.scheduler")
        try:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made(optimizer), "interval": "step"}}
        except (TypeError, ValueError) as error:
            raise UserError(f"phase.module.scheduler={self.scheduler}: {error}") from error

    def train(self, mode: bool = True) -> "Phase":
        """As ``nn.Module.train``, but frozen networks stay in ``eval``: Lightning calls this after each validation."""
        super().train(mode)
        for network in (*self.frozen, *self.fixed_statistics):
            getattr(self.detector, network).eval()
        return self

    def setup(self, stage: str) -> None:
        """Kernels in the layout in which the device trains fastest."""
        for weight in self.detector.parameters():
            layout = memory_format(self.trainer.strategy.root_device, weight.ndim)
            weight.data = weight.data.contiguous(memory_format=layout)

    def noise(self, step: int, purpose: int) -> torch.Generator:
        """A generator that depends on seed, step and purpose only, so that a resumed run repeats.

        It is the same on every process: ``dealt`` gives each what belongs to its volumes.
        """
        key = hashlib.sha256(f"{self.seed} {step} {purpose}".encode()).digest()[:8]  # torch takes the last 4 of them
        return torch.Generator().manual_seed(int.from_bytes(key))

    def shown(self, x: Tensor, step: int) -> Tensor:
        """What the detector's networks see of volumes ``(B, 1, D, H, W)`` in a step."""
        return self.detector.shown(x, self.noise(step, SHOWN))

    def person(self, batch: Batch, step: int) -> tuple[Tensor, ...]:
        """Who a batch shows, as far as the detector's networks are told it in a step."""
        return self.detector.person(batch, self.noise(step, TOLD))

    @contextmanager
    def seeded(self, step: int, purpose: int) -> Iterator[None]:
        """What is drawn inside from torch's own generators depends on what ``noise`` depends on."""
        with torch.random.fork_rng():
            torch.manual_seed(self.noise(step, purpose).initial_seed())
            yield

    def log_mean(self, name: str, mean: Tensor, scans: int) -> None:
        """Log the mean of a validation batch; the epoch's is over scans, also where processes have unequal shares."""
        if name not in self.means:
            self.means[name] = MeanMetric().to(self.device)
        metric = self.means[name]
        assert isinstance(metric, MeanMetric)
        metric.update(mean.detach(), scans)
        attribute = f"means.{name}"  # Lightning looks for new metrics only once
        self.log(f"{self.name}/{name}", metric, on_step=False, on_epoch=True, prog_bar=True, metric_attribute=attribute)

    def tell_apart(self, healthy: Tensor, pseudo: Tensor) -> dict[str, Tensor]:
        """Log how well scores ``(B,)`` tell healthy validation scans from those with something pasted in.

        Returns what ``validation_step`` should, for callbacks that draw curves.
        """
        scores = torch.cat([healthy, pseudo]).double()
        labels = torch.arange(len(scores), device=scores.device) >= len(healthy)
        self.pseudo_auc.update((1 + scores / (1 + scores.abs())) / 2, labels.long())  # the metric wants [0, 1]
        self.log(f"{self.name}/val_pseudo_auc", self.pseudo_auc, on_step=False, on_epoch=True, prog_bar=True)
        return {"healthy": healthy.detach(), "pseudo": pseudo.detach()}

    def health(self, data: HeadCTDataModule) -> dict[str, float]:
        """Numbers of how the training goes, after each validation; none knows of a test scan."""
        return {}

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        """What to look at after each validation, by name: for each scan of a batch, volumes ``(D, H, W)`` in [-1, 1]
        that belong together, or axial slices ``(D, H)``."""
        return {}

    @abstractmethod
    def training_step(self, batch: Batch, batch_idx: int) -> Any:
        """One step on a training batch."""

    @abstractmethod
    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """Log what ``monitors`` names."""
