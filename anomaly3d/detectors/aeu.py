"""The autoencoder with uncertainty (AE-U) of Mao et al. 2020: each voxel has a mean and a variance of its own."""

from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of, mean_inside
from anomaly3d.detectors.likelihood import deviance, gaussian_findings, mean_and_log_variance
from anomaly3d.networks.autoencoder import Autoencoder


class AEU(Detector):
    """Loss: (x - mean)^2 / variance + log variance. Score: its first term, so edges that vary in health count less.

    Args:
        width, latent, resolution, spatial: of ``Autoencoder``.
        floor: of the spread, in units of [-1, 1].

    Raises:
        ValueError: the floor is not positive.
    """

    title = "autoencoder with uncertainty"

    def __init__(self, width: int, latent: int, resolution: int, floor: float, spatial: bool = True) -> None:
        super().__init__()
        if floor <= 0:
            raise ValueError(f"floor must be above 0, not {floor}")
        self.net = Autoencoder(width, latent, resolution, spatial, out_channels=2)
        self.floor = floor

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each voxel, ``(B, 1, D, H, W)``."""
        return mean_and_log_variance(self.net(x), self.floor)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean deviance over the brain."""
        x = batch["image"]
        return {"loss": mean_inside(deviance(x, *self.predict(x)), brain_of(batch)).mean()}

    def examine(self, batch: Batch) -> Findings:
        """See ``gaussian_findings``."""
        mean, log_variance = self.predict(batch["image"])
        return gaussian_findings(batch, mean, log_variance.exp())
