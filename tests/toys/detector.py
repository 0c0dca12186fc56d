"""A detector as its author would write it: one class."""

import torch.nn.functional as F
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings


class Blur(Detector):
    """Reconstructs a volume from a coarse copy of it, and has a signed map of its own."""

    title = "toy autoencoder"
    parts = ("error", "energy")

    def __init__(self, factor: int, channels: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.layers = nn.Sequential(nn.Conv3d(1, channels, 3, 1, 1), nn.Tanh(), nn.Conv3d(channels, 1, 3, 1, 1))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.layers(F.interpolate(F.avg_pool3d(x, self.factor), scale_factor=self.factor))

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        again = self.reconstruct(x)
        error, energy = (v.float().square().flatten(1).mean(1) for v in (x - again, again))
        return Findings(
            {"total": error + energy, "error": error, "energy": energy}, again, {"edges": x - again.flip(2)}
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        error = F.mse_loss(self.reconstruct(batch["image"]), batch["image"])
        return {"loss": error, "rms": error.sqrt()}
