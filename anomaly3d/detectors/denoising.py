"""The denoising autoencoder of Kascenas et al. 2022: a U-Net that has learned to take out coarse noise."""

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

    Raises:
        ValueError: fewer than 2 nodes.
    """

    title = "denoising autoencoder"

    def __init__(self, width: int, resolution: int, nodes: int, spread: float) -> None:
        super().__init__()
        if nodes < 2:
            raise ValueError(f"nodes must be at least 2, not {nodes}")
        self.net = VolumeUNet(width, resolution)
        self.nodes, self.spread = nodes, spread

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared residual over the brain, of the scan with noise in the brain."""
        x, brain = batch["image"], brain_of(batch)
        noisy = x + coarse_noise(x, self.nodes, self.spread) * brain
        return {"loss": mean_inside((x - self.net(noisy)).square(), brain).mean()}

    def examine(self, batch: Batch) -> Findings:
        """See ``residual_findings``."""
        return residual_findings(batch, self.net(batch["image"]))
