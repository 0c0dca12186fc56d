"""Phase 4: beside the frozen f-AnoGAN, a network learns from healthy scans where something was pasted into them.

Zavrtanik et al. 2021 (DRAEM) and Tan et al. 2020 (foreign patch interpolation) did this for pictures and volumes. What
it learns are the kinds of ``detector.module.contrast.kinds``; checkpoints and scores are chosen by a kind that is not
among them, because a network that gets better at its own pasted anomalies may get worse at others.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import data_of
from anomaly3d.data.pasting import taught_batch
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Alarm, OptimizerConfig, Phase

PASTED, CHECKED = 0, 1  # what random numbers are for
NETWORKS = ("generator", "critic", "encoder")
RARE = 4.0  # weight of a voxel with something wrong
SCALES = (1, 2, 4)  # voxels a side, at which the logits are judged
POOLED = 3  # voxels to each side over which the healthy residual's mean and spread are pooled
FLOOR = 0.02  # of the spread: 1.2 HU
LARGEST = 100 / 64**3  # share of voxels whose mean logit is a scan's score
COUNT = 8  # volumes a forward pass outside of training


class ContrastPhase(Phase):
    """Cross-entropy at each voxel of the brain; encoder, generator and critic are frozen.

    Raises:
        UserError: the detector has no network to teach, or its networks are told of age and sex.
    """

    name = "contrast"
    question = "Does it see what was pasted, of kinds that it was not taught?"
    panels = (
        ("Loss of validation heads with something pasted in", ("val_loss",)),
        ("A kind told apart that was left out", ("val_pseudo_auc",)),
    )
    alarms: ClassVar[tuple[Alarm, ...]] = (
        Alarm("val_loss", 0, 2, "it does not learn to see what was pasted; lower the learning rate", 2),
    )
    detector: FAnoGAN

    def __init__(
        self,
        detector: FAnoGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(detector, optimizer, seed, NETWORKS, scheduler)
        if self.detector.contrast is None:
            raise UserError("phase contrast has no network to teach: detector.module.contrast is null")
        if self.detector.model.person != "none":
            raise UserError("phase contrast cannot tell networks age and sex: train all phases with model.person=none")
        self.contrast = self.detector.contrast
        self.contrast.taught.fill_(True)

    def configure_optimizers(self) -> Any:
        """One for the network that is taught, and its schedule."""
        return self.scheduled(self.make_optimizer(self.contrast.parameters()))

    def on_fit_start(self) -> None:
        """What is usual in residuals of scans that encoder and generator have not seen: of validation scans."""
        data = data_of(self.trainer)
        mean, spread = self.usual(data.volumes("validation"), data.volumes("validation", "brain_mask"))
        self.contrast.mean.copy_(mean)
        self.contrast.spread.copy_(spread)

    @torch.no_grad()
    def usual(self, volumes: Tensor, brains: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and spread of the residual at each voxel, pooled over its neighbours: ``(N, 1, D, H, W)`` twice ->
        ``(1, D, H, W)`` twice."""
        count, total, square = (torch.zeros(volumes.shape[1:], device=self.device) for _ in range(3))
        for some, inside in zip(volumes.split(COUNT), brains.split(COUNT), strict=True):
            x, brain = some.to(self.device), inside.to(self.device).float()
            residual = (x - self.detector.judged_against(x, self.detector.encoder(x))) * brain
            count, total, square = count + brain.sum(0), total + residual.sum(0), square + residual.square().sum(0)
        count, total, square = (F.avg_pool3d(v, 2 * POOLED + 1, 1, POOLED) for v in (count, total, square))
        mean = total / count.clamp(min=0.5)
        spread = (square / count.clamp(min=0.5) - mean**2).clamp(min=0).sqrt()
        return mean, torch.where(count > 0, spread.clamp(min=FLOOR), 1.0)

    def pasted(self, batch: Batch, step: int, purpose: int) -> tuple[Tensor, Tensor, Tensor]:
        """Volumes ``(B, 1, D, H, W)`` with or without something pasted in, where, bool, and their brains."""
        donors = data_of(self.trainer).volumes("train")[:, 0]
        return taught_batch(batch, donors, self.contrast.kinds, self.noise(step, purpose))[1:]

    def logits(self, x: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` -> the same shape."""
        with torch.no_grad():
            reconstruction = self.detector.judged_against(x, self.detector.encoder(x))
        return self.contrast(x, reconstruction.to(x.dtype))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch with pasted anomalies."""
        x, wrong, brain = self.pasted(batch, self.global_step, PASTED)
        loss = contrast_loss(self.logits(x), wrong, brain)
        self.log("contrast/loss", loss.detach(), batch_size=len(x))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The loss with pasted anomalies, and how well scans with something of a left-out kind are told apart."""
        x, wrong, moved = self.pasted(batch, batch_idx, CHECKED)
        self.log_mean("val_loss", contrast_loss(self.logits(x), wrong, moved), len(x))
        brain = batch["brain"] > 0
        return self.tell_apart(*(largest(self.logits(batch[kind]), brain) for kind in ("image", "pseudo")))

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        x, wrong, _ = self.pasted(batch, 0, CHECKED)
        found = self.logits(x).sigmoid()
        shown = zip(x, wrong.float(), found, strict=True)
        return {"pasted": [[a[0], b[0] * 2 - 1, c[0] * 2 - 1] for a, b, c in shown]}


def contrast_loss(logits: Tensor, wrong: Tensor, brain: Tensor) -> Tensor:
    """Mean cross-entropy over each brain, at each of ``SCALES``, of logits ``(B, 1, D, H, W)``; masks are bool.

    At a coarser scale a cube's logit is the mean over its voxels and it is wrong where half of it is.
    """
    total = logits.new_zeros(())
    rare = torch.tensor(RARE, device=logits.device)
    for scale in SCALES:
        local, truth, inside = (F.avg_pool3d(v.float(), scale) for v in (logits, wrong, brain))
        entropy = F.binary_cross_entropy_with_logits(local, (truth >= 0.5).float(), pos_weight=rare, reduction="none")
        weighted, weight = ((v * inside).flatten(1).sum(1) for v in (entropy, torch.ones_like(entropy)))
        total = total + (weighted / weight.clamp(min=1)).mean()
    return total / len(SCALES)


def largest(logits: Tensor, brain: Tensor) -> Tensor:
    """Mean of the largest logits inside each brain: ``(B, 1, D, H, W)`` twice -> ``(B,)``."""
    inside = torch.where(brain, logits, logits.new_tensor(-100.0)).flatten(1)
    return inside.topk(max(1, round(LARGEST * inside.shape[1])), 1).values.mean(1)
