"""The denoising autoencoder of Kascenas et al. 2022: a U-Net that has learned to take out coarse noise."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of, mean_inside, residual_findings
from anomaly3d.networks.unet import VolumeUNet


def coarse_noise(x: Tensor, nodes: int, spread: float) -> Tensor:
    """Gaussian noise at ``nodes``^3 points, interpolated between them and moved around by chance: as ``x``'s shape.

    ``spread`` is that at the points; between them it is smaller.
    """
    points = spread * dealt(lambda volumes: torch.randn(volumes, 1, nodes, nodes, nodes), len(x)).to(x.device)
    fine = F.interpolate(points, size=x.shape[2:], mode="trilinear", align_corners=True)
    shifts = [int(torch.randint(side, ())) for side in x.shape[2:]]
    return fine.roll(shifts, (2, 3, 4))


class DenoisingAutoencoder(Detector):
    """Anomalies of a scan, which is given without noise, are taken for noise.

    Args:
        width, resolution: of ``VolumeUNet``.
        nodes: noise is drawn at so many points a side.
        spread: of the noise, in units of [-1, 1].
        predicts: what the network gives: the healthy ``volume``, or the ``noise``, so that detail of the scan need not
            pass through it.

    Raises:
        ValueError: fewer than 2 nodes, or it predicts something else.
    """

    title = "denoising autoencoder"

    def __init__(
        self,
        width: int,
        resolution: int,
        nodes: int,
        spread: float,
        predicts: Literal["volume", "noise"] = "volume",  # of detectors from before there was a choice
    ) -> None:
        super().__init__()
        if nodes < 2:
            raise ValueError(f"nodes must be at least 2, not {nodes}")
        if predicts not in ("volume", "noise"):
            raise ValueError(f"predicts must be volume or noise, not {predicts!r}")
        self.net = VolumeUNet(width, resolution)
        self.nodes, self.spread, self.predicts = nodes, spread, predicts

    def restored(self, x: Tensor) -> Tensor:
        """Without noise: ``(B, 1, D, H, W)`` -> the same shape."""
        found = self.net(x)
        return x - found if self.predicts == "noise" else found

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared residual over the brain, of the scan with noise in the brain."""
        x, brain = batch["image"], brain_of(batch)
        noisy = x + coarse_noise(x, self.nodes, self.spread) * brain
        return {"loss": mean_inside((x - self.restored(noisy)).square(), brain).mean()}

    def examine(self, batch: Batch) -> Findings:
        """See ``residual_findings``."""
        return residual_findings(batch, self.restored(batch["image"]))
