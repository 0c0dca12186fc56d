"""The interface that evaluation knows detectors by."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Detector(nn.Module, ABC):
    """A method that has learned what is healthy."""

    @abstractmethod
    def reconstruct(self, x: Tensor) -> Tensor:
        """The healthy volume nearest to ``x``: ``(B, 1, D, H, W)`` in [-1, 1] -> the same shape."""

    @abstractmethod
    def score(self, x: Tensor) -> dict[str, Tensor]:
        """Distances of ``x (B, 1, D, H, W)`` from healthy, each ``(B,)``; ``total`` is the anomaly score."""
