"""The upper control: a small 3D network that is told which phantoms have a lesion, as no method here is."""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly3d.detectors.base import FittedDetector
from anomaly3d.progress import track

CHANNELS = (16, 32, 64, 64)
EPOCHS, BATCH, RATE = 30, 8, 1e-3


class Supervised(FittedDetector):
    """Four strided convolutions, the strongest evidence anywhere in the volume, one logit."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *CHANNELS), CHANNELS, strict=False):
            layers += [nn.Conv3d(before, after, 3, 2, 1), nn.GroupNorm(8, after), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * CHANNELS[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B,)`` of volumes ``(B, 1, D, H, W)``."""
        found = self.features(x).flatten(2)
        return self.head(torch.cat([found.mean(2), found.amax(2)], 1))[:, 0]

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        """From labelled volumes: the first half of ``train`` is healthy, the second has lesions."""
        labels = (torch.arange(len(train)) >= len(train) // 2).float()
        torch.manual_seed(0)
        detector = cls()
        optimizer = torch.optim.AdamW(detector.parameters(), RATE, weight_decay=1e-2)
        steps = len(train) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
        for _ in track(range(EPOCHS), EPOCHS, "supervised control"):
            for batch in torch.randperm(len(train))[: steps * BATCH].split(BATCH):
                x = train[batch]
                x = torch.where((torch.rand(BATCH) < 0.5).view(-1, 1, 1, 1, 1), x, x.flip(2))
                loss = F.binary_cross_entropy_with_logits(detector(x), labels[batch])
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
