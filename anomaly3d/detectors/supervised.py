"""The upper control: a small 3D network that is shown which phantoms have a lesion and where, as no method here is."""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly3d.detectors.base import FittedDetector
from anomaly3d.errors import UserError
from anomaly3d.hardware import fast_bfloat16
from anomaly3d.progress import track

WIDTH = 16  # channels of the first layer
EPOCHS, BATCH, RATE, DECAY = 100, 8, 1e-3, 2e-2
LARGEST = 8  # places whose mean evidence counts
WEIGHT, RARE = 3.0, 10.0  # of the loss at places, and there of a place with a lesion
RARE_LOGIT = -3.0  # few places hold a lesion
SMALLEST = 64  # voxels a side from which on bfloat16 is used


def layer(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv3d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU())


class Supervised(FittedDetector):
    """A pyramid of features of a volume and its difference to its mirror image.

    Its scales together give a logit for each place of 4^3 voxels; the coarsest features and the strongest places give
    that of the scan.
    """

    reconstructs = False

    def __init__(self) -> None:
        super().__init__()
        a, b, c = WIDTH, 2 * WIDTH, 4 * WIDTH
        self.places = nn.Sequential(layer(2, a, 2), layer(a, a), layer(a, b, 2), layer(b, b), layer(b, b))
        self.coarse = nn.Sequential(layer(b, c, 2), layer(c, c))
        self.coarsest = nn.Sequential(layer(c, c, 2), layer(c, c))
        self.local = nn.Sequential(layer(b + 2 * c, b), nn.Conv3d(b, 1, 1))
        self.head = nn.Linear(2 * c + 2, 1)
        nn.init.constant_(self.local[1].bias, RARE_LOGIT)  # type: ignore[arg-type]

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of volumes ``(B, 1, D, H, W)``: of the scan ``(B,)``, of its places ``(B, 1, D / 4, H / 4, W / 4)``."""
        fine = self.places(torch.cat([x, x - x.flip(2)], 1))
        coarse = self.coarse(fine)
        coarsest = self.coarsest(coarse)
        scales = [fine, *(F.interpolate(f, size=fine.shape[2:]) for f in (coarse, coarsest))]
        local = self.local(torch.cat(scales, 1))
        places, flat = local.flatten(1), coarsest.flatten(2)
        strongest = places.topk(min(LARGEST, places.shape[1]), 1).values.mean(1, keepdim=True)
        everywhere = F.softplus(places).mean(1, keepdim=True).log()
        return self.head(torch.cat([flat.mean(2), flat.amax(2), strongest, everywhere], 1))[:, 0], local

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B,)`` of volumes ``(B, 1, D, H, W)``, the mean over both sides."""
        return (self.logits(x)[0] + self.logits(x.flip(2))[0]) / 2

    def loss(self, x: Tensor, lesion: Tensor, ill: Tensor) -> Tensor:
        """Cross-entropy of the scans' labels, and of their places where it is known which of them hold a lesion.

        Args:
            x: volumes ``(B, 1, D, H, W)``.
            lesion: masks of the same shape, empty where an abnormal scan has none.
            ill: labels 0 and 1 ``(B,)``.
        """
        scan, local = self.logits(x)
        known = (ill == 0) | lesion.flatten(1).any(1)
        truth = F.adaptive_max_pool3d(lesion, local.shape[2:])
        at_places = F.binary_cross_entropy_with_logits(
            local.float(), truth, pos_weight=torch.tensor(RARE), reduction="none"
        )
        of_scans = F.binary_cross_entropy_with_logits(scan.float(), ill)
        return of_scans + WEIGHT * (at_places.flatten(1).mean(1) * known).mean()

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        """From labelled volumes and their lesion masks ``(N, 2, D, H, W)``: healthy ones, then as many abnormal ones.

        Raises:
            UserError: fewer volumes than a batch.
        """
        if len(train) < BATCH:
            raise UserError(
                f"the supervised control needs {BATCH} labelled scans, half of them abnormal, and gets {len(train)}: "
                "give more scans the split 'labelled' (phantoms: dataset.counts.labelled_normal and labelled_lesion)"
            )
        labels = (torch.arange(len(train)) >= len(train) // 2).float()
        torch.manual_seed(0)
        detector = cls()
        optimizer = torch.optim.AdamW(detector.parameters(), RATE, weight_decay=DECAY)
        steps = len(train) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
        # not on smaller volumes: the bfloat16 weight gradient of a 3-wide convolution on 2^3 voxels reads unwritten
        # memory (torch 2.13, CPU)
        rounded = fast_bfloat16("cpu") and min(train.shape[2:]) >= SMALLEST
        for _ in track(range(EPOCHS), EPOCHS, "supervised control"):
            for batch in torch.randperm(len(train))[: steps * BATCH].split(BATCH):
                mirrored = (torch.rand(BATCH) < 0.5).view(-1, 1, 1, 1, 1)
                both = torch.where(mirrored, train[batch].flip(2), train[batch])
                both = both.roll(torch.randint(-1, 2, (3,)).tolist(), (2, 3, 4))
                x, lesion = both.split(1, 1)
                with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
                    loss = detector.loss(x, lesion, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return detector.eval()

    @classmethod
    def load(cls, path: Path) -> Self:
        detector = cls()
        detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return detector.eval()

    def reconstruct(self, x: Tensor) -> Tensor:
        return x

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": self(x)}
