"""Is the training of a GAN going well? Numbers after each validation, and alarms in plain words.

Phase 1 looks at samples: how alike they are, how far from real volumes, whether they copy training volumes; and at the
critic. Phases 2 and 3 look at the encoder's output and at the balance of its two losses. Nothing here knows of a test
scan, and nothing is chosen by it.
"""

import json
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import lightning as L
import torch
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from torch import Tensor

from anomaly3d.errors import UserError
from anomaly3d.files import written_whole
from anomaly3d.phases.gan import SAMPLES
from anomaly3d.progress import say

NEIGHBOURS = 500  # training volumes among which the nearest is sought
COUNT = 6  # volumes that are compared with each other
KERNEL, SCALES = 7, (0.2, 0.3, 0.5)  # of MS-SSIM; the default needs more than 160 voxels a side
SATURATED = 0.99  # |tanh| from which its gradient is gone
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


ALARMS = {
    "gan": (
        Alarm("sameness", -1, 0.15, "samples look more alike than real heads do, which is mode collapse"),
        Alarm(
            "distance", 0, 1.0, "the average sample is far from the average real head; train longer, or it diverges", 4
        ),
        Alarm(
            "copying",
            0.5,
            math.inf,
            "samples lie closer to training scans than other healthy heads do: they are copied",
        ),
        Alarm(
            "gradient_norm",
            0.5,
            2.5,
            "the penalty should hold it near 1; raise lambda_gp or lower the learning rate",
            6,
        ),
        Alarm("wasserstein", -math.inf, math.inf, "the critic has run away from the generator", 2, True),
        Alarm("overfitting", -math.inf, 0.7, "the critic tells training heads from other healthy heads: too few scans"),
    ),
    "encoder": (
        Alarm("saturation", 0, 0.5, "most of the encoder's tanh outputs are at -1 or 1 and learn no more"),
        Alarm("balance", 0.02, 50, "one of image and feature distance is all of the loss; change detector.kappa"),
        Alarm("val_loss", 0, math.inf, "the reconstruction of healthy heads gets worse at once", 1, True),
        Alarm("gap", 0, 10, "healthy training heads are reconstructed far better than others: too few scans"),
    ),
}
ALARMS["finetune"] = ALARMS["encoder"]


def alikeness(volumes: Tensor) -> float:
    """Mean MS-SSIM over pairs of volumes ``(N, 1, D, H, W)`` in [-1, 1]."""
    metric = MultiScaleSSIMMetric(3, data_range=2.0, kernel_size=KERNEL, weights=SCALES)
    pairs = list(combinations(range(len(volumes)), 2))
    if not pairs:
        return 0.0
    first, second = (volumes[[pair[side] for pair in pairs]] for side in (0, 1))
    return float(torch.as_tensor(metric(first, second)).nanmean())


def nearest(volumes: Tensor, training: Tensor) -> Tensor:
    """Distance of each volume to the nearest training volume, ``(N,)``."""
    return torch.cdist(volumes.flatten(1), training.flatten(1)).amin(1)


def gan_health(module: Any, train: Tensor, validation: Tensor, of_real: float) -> dict[str, float]:
    """``sameness``: MS-SSIM among samples minus that among real heads. ``distance``: MMD of samples and real heads in
    units of the real heads' variance. ``copying``: how near samples come to training heads, over how near other healthy
    heads come. ``overfitting``: the critic's mean for training heads minus that for validation heads, over the gap
    between training heads and samples.

    Args:
        of_real: mean MS-SSIM among real heads.
    """
    detector = module.detector
    samples = detector.generator(module.latent(COUNT, 0, SAMPLES)).float()
    count = min(len(samples), len(validation), len(train))
    real = validation[:count].to(samples.device)
    flat, generated = real.flatten(1), samples[:count].flatten(1)
    if count < 2:
        return {}  # one head has no spread to compare with
    variance = flat.var(0).sum()
    distance = MMDMetric()(flat, generated) / variance
    of_train, of_validation, of_samples = (
        float(detector.critic(v.to(samples.device)).float().mean()) for v in (train[:count], real, samples)
    )
    near, usual = (nearest(v.cpu(), train[:NEIGHBOURS]).median() for v in (samples, real))
    return {
        "sameness": alikeness(samples) - of_real,
        "distance": float(distance.clamp_min(0)),
        "copying": float(near / usual),
        "overfitting": (of_train - of_validation) / max(abs(of_train - of_samples), 1e-6),
    }


def encoder_health(module: Any, train: Tensor, validation: Tensor) -> dict[str, float]:
    """``saturation``: share of the encoder's outputs beyond ``SATURATED``. ``balance``: image over weighted feature
    distance. ``gap``: loss of healthy validation heads over that of training heads.
    """
    detector = module.detector
    losses = []
    for volumes in (train[:COUNT], validation[:COUNT]):
        x = volumes.to(module.device)
        z = detector.encoder(x)
        losses.append({k: float(v.mean()) for k, v in detector.distances(x, detector.generator(z)).items()})
    bounded = detector.model.encoder_output == "tanh"
    ill = losses[1]
    return {
        "saturation": float((z.abs() > SATURATED).float().mean()) if bounded else 0.0,
        "balance": ill["image"] / max(detector.kappa * ill["feature"], 1e-12),
        "gap": ill["total"] / max(losses[0]["total"], 1e-12),
    }


class Health(L.Callback):
    """Measure, log under ``PHASE/health_NAME``, warn, and keep all of it in ``health.json``.

    Args:
        folder: of the phase.
        abort: end training at the first alarm.
    """

    def __init__(self, folder: Path, abort: bool = False) -> None:
        self.file, self.abort = folder / "health.json", abort
        self.of_real: float | None = None  # alikeness of real heads, which does not change
        self.history: list[dict[str, float]] = []
        self.alarms: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "alarms": self.alarms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.alarms = state["history"], state["alarms"]

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        data = trainer.datamodule
        train, validation = data.volumes("train"), data.volumes("validation")
        if module.name == "gan":
            self.of_real = alikeness(validation[:COUNT]) if self.of_real is None else self.of_real
            found = gan_health(module, train, validation, self.of_real)
        else:
            found = encoder_health(module, train, validation)
        module.log_dict({f"{module.name}/health_{k}": v for k, v in found.items()}, rank_zero_only=True)
        alarms: list[str] = []
        if trainer.is_global_zero:
            logged = {
                k.split("/")[1]: float(v) for k, v in trainer.callback_metrics.items() if k.startswith(module.name)
            }
            alarms = self.look({**logged, **found}, module.name, trainer.current_epoch + 1)
            with written_whole(self.file) as path:
                path.write_text(json.dumps(self.state_dict(), indent=1))
            for words in alarms:
                say(f"  alarm: {words}")
        if self.abort and (alarms := trainer.strategy.broadcast(alarms)):
            raise UserError(f"stopped at an alarm (callbacks.abort=true): {alarms[0]}")

    def look(self, numbers: dict[str, float], phase: str, epoch: int) -> list[str]:
        """Take in the numbers of a validation and return what is alarming; an alarm is given once until it ends."""
        watched = {alarm.number: alarm for alarm in ALARMS[phase]}
        self.history.append({name: numbers[name] for name in watched if name in numbers})
        before = {a["number"] for a in self.alarms if a["epoch"] == epoch - 1 or a.get("until") == epoch - 1}
        words = []
        for name, alarm in watched.items():
            values = [h[name] for h in self.history if name in h]
            text = alarm.check(values) if values else None
            if not text:
                continue
            if name in before:
                last = next(a for a in reversed(self.alarms) if a["number"] == name)
                last["until"] = epoch
            else:
                self.alarms.append({"number": name, "epoch": epoch, "words": text})
                words.append(text)
        return words
