"""AnoVAEGAN (Baur et al. 2018): a VAE whose latent space keeps places and whose reconstructions a critic judges."""

from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.losses import absolute_distance
from anomaly3d.detectors.normal import divergence, drawn
from anomaly3d.errors import UserError
from anomaly3d.networks.gan import Critic
from anomaly3d.networks.spatial import SpatialDecoder, SpatialEncoder


class AnoVAEGAN(Detector):
    """A(x) = mean |x - G(mu(x))|. The phase ``vaegan`` trains it.

    Args:
        channels: of each network's widest resolution.
        halvings: of each side, from volume to latent space.
        latent: channels of the latent space.
        resolution: of the volumes, which the critic has to know.
        beta: weight of the divergence; 1 is the paper's.

    Raises:
        UserError: a resolution that the critic cannot have.
    """

    title = "3D AnoVAEGAN"

    def __init__(
        self, channels: int = 16, halvings: int = 3, latent: int = 16, resolution: int = 64, beta: float = 1.0
    ) -> None:
        super().__init__()
        self.beta, self.multiple = beta, 2**halvings
        self.encoder = SpatialEncoder(channels, halvings, 2 * latent)
        self.generator = SpatialDecoder(channels, halvings, latent)
        try:
            self.critic = Critic(channels, resolution)
        except ValueError as error:
            raise UserError(f"detector.module: {error}") from error

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), ``(B, latent, d, h, w)`` each."""
        mean, logvar = self.encoder(x).float().chunk(2, 1)
        return mean, logvar

    def reconstruct(self, x: Tensor) -> Tensor:
        """From the mean: ``(B, 1, D, H, W)`` -> the same shape, in [-1, 1]."""
        return self.generator(self.posterior(x)[0])

    def autoencode(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The reconstruction from a draw, and ``loss`` with its parts ``image`` = mean |x - x~| and ``kl``, the
        divergence from N(0, I) for each voxel of the volume."""
        mean, logvar = self.posterior(x)
        reconstruction = self.generator(drawn(mean, logvar))
        image = absolute_distance(x, reconstruction).mean()
        kl = divergence(mean, logvar).sum() / x.numel()
        return reconstruction, {"loss": image + self.beta * kl, "image": image, "kl": kl}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The VAE's part of it; the phase adds what the critic says."""
        return self.autoencode(batch["image"])[1]

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        reconstruction = self.reconstruct(x)
        return Findings({"total": absolute_distance(x, reconstruction)}, reconstruction)
