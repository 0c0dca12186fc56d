"""The interface that evaluation knows detectors by."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from anomaly3d.files import written_whole


class Detector(nn.Module, ABC):
    """A method that has learned what is healthy.

    ``reconstructs`` is False where ``reconstruct`` only gives back what it got: then there is no map to look at.
    """

    reconstructs = True

    @abstractmethod
    def reconstruct(self, x: Tensor) -> Tensor:
        """The healthy volume nearest to ``x``: ``(B, 1, D, H, W)`` in [-1, 1] -> the same shape."""

    @abstractmethod
    def score(self, x: Tensor) -> dict[str, Tensor]:
        """Distances of ``x (B, 1, D, H, W)`` from healthy, each ``(B,)``; ``total`` is the anomaly score."""

    def examine(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Distances and reconstruction of a batch's ``image``, in one pass where the method can.

        An oracle may look at more of the batch.
        """
        return self.score(batch["image"]), self.reconstruct(batch["image"])


class FittedDetector(Detector):
    """A method of one stage: fitted to healthy volumes at once, all it has learned in its buffers and parameters."""

    @classmethod
    @abstractmethod
    def fit(cls, train: Tensor, validation: Tensor) -> Self:
        """From healthy volumes ``(N, 1, D, H, W)``; ``validation`` (healthy as well) may choose between variants."""

    def save(self, path: Path) -> None:
        """Write what was learned; the file loads with ``weights_only=True``."""
        with written_whole(path) as beside, beside.open("wb") as file:  # a path's name would be in the file
            torch.save(self.state_dict(), file)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what ``save`` wrote, onto the CPU."""
        detector = cls()
        for name, value in torch.load(path, map_location="cpu", weights_only=True).items():
            detector.register_buffer(name, value)
        return detector
