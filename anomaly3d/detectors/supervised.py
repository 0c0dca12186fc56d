"""The upper control: a small 3D network that is told which phantoms have a lesion, as no method here is."""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly3d.detectors.base import FittedDetector
from anomaly3d.errors import UserError
from anomaly3d.progress import track

WIDTH = 16  # channels of the first layer
EPOCHS, BATCH, RATE = 30, 8, 1e-3
LARGEST = 8  # places whose mean evidence counts


def layer(before: int, after: int, stride: int) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv3d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU())


class Supervised(FittedDetector):
    """Convolutions on a volume and its difference to its mirror image; then one logit from the mean and the maximum of
    the features and from the places with the strongest evidence.
    """

    reconstructs = False

    def __init__(self) -> None:
        super().__init__()
        wide = 4 * WIDTH
        self.features = nn.Sequential(
            layer(2, WIDTH, 2),
            layer(WIDTH, 2 * WIDTH, 2),
            layer(2 * WIDTH, wide, 1),
            layer(wide, wide, 2),
            layer(wide, wide, 1),
        )
        self.local = nn.Conv3d(wide, 1, 1)
        self.head = nn.Linear(2 * wide + 1, 1)

    def logits(self, x: Tensor) -> Tensor:
        """Of volumes ``(B, 1, D, H, W)``, ``(B,)``."""
        features = self.features(torch.cat([x, x - x.flip(2)], 1))
        places, flat = self.local(features).flatten(1), features.flatten(2)
        strongest = places.topk(min(LARGEST, places.shape[1]), 1).values.mean(1, keepdim=True)
        return self.head(torch.cat([flat.mean(2), flat.amax(2), strongest], 1))[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B,)`` of volumes ``(B, 1, D, H, W)``, the mean over both sides."""
        return (self.logits(x) + self.logits(x.flip(2))) / 2

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        """From labelled volumes: the first half of ``train`` is healthy, the second has lesions.

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
        optimizer = torch.optim.AdamW(detector.parameters(), RATE, weight_decay=2e-2)
        steps = len(train) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
        for _ in track(range(EPOCHS), EPOCHS, "supervised control"):
            for batch in torch.randperm(len(train))[: steps * BATCH].split(BATCH):
                mirrored = (torch.rand(BATCH) < 0.5).view(-1, 1, 1, 1, 1)
                x = torch.where(mirrored, train[batch].flip(2), train[batch])
                x = x.roll(torch.randint(-1, 2, (3,)).tolist(), (2, 3, 4))
                # float32: the bfloat16 weight gradient of a 3-wide convolution on 2^3 voxels reads unwritten memory
                # (torch 2.13, CPU); the other networks' layers were tried and do not
                loss = F.binary_cross_entropy_with_logits(detector.logits(x), labels[batch])
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
