"""The upper control: a small 3D network that is shown where lesions are, as no method here is."""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly3d.detectors.base import FittedDetector
from anomaly3d.hardware import fast_bfloat16
from anomaly3d.progress import track

WIDTH = 16  # channels of the first layer
EPOCHS, BATCH, RATE = 30, 8, 2e-3
STRIDE = 4  # of the grid on which lesions are located
LARGEST = 8  # places of that grid whose mean evidence counts


def layer(before: int, after: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU."""
    convolution = nn.Conv3d(before, after, 3, stride, dilation, dilation)
    return nn.Sequential(convolution, nn.GroupNorm(8, after), nn.ReLU())


class Supervised(FittedDetector):
    """Evidence at each place of a coarse grid, its strongest places and the features' mean and maximum, one logit.

    The network sees a volume and its difference to its mirror image.
    """

    def __init__(self) -> None:
        super().__init__()
        wide = 4 * WIDTH
        self.features = nn.Sequential(
            layer(2, WIDTH, 2),
            layer(WIDTH, 2 * WIDTH, 2),
            layer(2 * WIDTH, wide),
            layer(wide, wide, dilation=2),
            layer(wide, wide, dilation=4),
        )
        self.local = nn.Conv3d(wide, 1, 1)
        self.head = nn.Linear(2 * wide + 1, 1)

    def evidence(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of volumes ``(B, 1, D, H, W)``: of the scans ``(B,)`` and of places ``(B, 1, D/4, H/4, W/4)``."""
        features = self.features(torch.cat([x, x - x.flip(2)], 1))
        places, flat = self.local(features), features.flatten(2)
        strongest = places.flatten(1).topk(min(LARGEST, places[0].numel()), 1).values.mean(1, keepdim=True)
        return self.head(torch.cat([flat.mean(2), flat.amax(2), strongest], 1))[:, 0], places

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B,)`` of volumes ``(B, 1, D, H, W)``, the mean over both sides."""
        return (self.evidence(x)[0] + self.evidence(x.flip(2))[0]) / 2

    @classmethod
    def fit(cls, train: Tensor, validation: Tensor, lesions: Tensor | None = None) -> Self:
        """From labelled volumes: the first half of ``train`` is healthy, the second has lesions.

        Args:
            lesions: their masks, of the shape of ``train``; None where only labels are known.
        """
        labels = (torch.arange(len(train)) >= len(train) // 2).float()
        torch.manual_seed(0)
        detector = cls().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        fast = torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16("cpu"))
        optimizer = torch.optim.AdamW(detector.parameters(), RATE, weight_decay=1e-2)
        steps = len(train) // BATCH
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, EPOCHS * steps)
        for _ in track(range(EPOCHS), EPOCHS, "supervised control"):
            for batch in torch.randperm(len(train))[: steps * BATCH].split(BATCH):
                mirrored = (torch.rand(len(batch)) < 0.5).view(-1, 1, 1, 1, 1)
                shift = torch.randint(-2, 3, (3,)).tolist()

                def change(volumes: Tensor, m: Tensor = mirrored, s: list[int] = shift) -> Tensor:
                    return torch.where(m, volumes.flip(2), volumes).roll(s, (2, 3, 4))

                with fast:
                    scans, places = (logits.float() for logits in detector.evidence(change(train[batch])))
                loss = F.binary_cross_entropy_with_logits(scans, labels[batch])
                if lesions is not None:
                    truth = F.max_pool3d(change(lesions[batch]).float(), STRIDE)
                    loss = loss + F.binary_cross_entropy_with_logits(places, truth, pos_weight=torch.tensor(5.0))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return detector.to(memory_format=torch.contiguous_format).eval()

    @classmethod
    def load(cls, path: Path) -> Self:
        detector = cls()
        detector.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return detector.eval()

    def reconstruct(self, x: Tensor) -> Tensor:
        return x

    def score(self, x: Tensor) -> dict[str, Tensor]:
        return {"total": self(x)}
