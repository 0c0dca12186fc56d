"""The convolutional autoencoder of Baur et al. 2018 and 2021, in three dimensions."""

from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of, mean_inside, residual_findings
from anomaly3d.networks.autoencoder import Autoencoder


class ConvolutionalAutoencoder(Detector):
    """A narrow code has no room for what healthy scans do not have: x^ = D(E(x)), trained by |x - x^|.

    Args:
        width, latent, resolution, spatial: of ``Autoencoder``.
    """

    title = "autoencoder"

    def __init__(self, width: int, latent: int, resolution: int, spatial: bool = True) -> None:
        super().__init__()
        self.net = Autoencoder(width, latent, resolution, spatial)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean absolute residual over the brain."""
        x = batch["image"]
        return {"loss": mean_inside((x - self.net(x)).abs(), brain_of(batch)).mean()}

    def examine(self, batch: Batch) -> Findings:
        """See ``residual_findings``."""
        return residual_findings(batch, self.net(batch["image"]))
