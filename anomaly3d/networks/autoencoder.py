"""A convolutional autoencoder whose code is a small volume (spatial) or a vector (dense)."""

import math

from monai.networks.nets import AutoEncoder
from torch import Tensor, nn

from anomaly3d.networks.gan import base_and_doublings
from anomaly3d.networks.unet import ACTIVATION, NORM, check_width


class Autoencoder(nn.Module):
    """MONAI's ``AutoEncoder`` down to 8^3 or 12^3 and back, with a narrow linear code in the middle.

    No convolution sees fewer than 4 voxels a side: the bfloat16 weight gradient of a 3-wide one on 2^3 reads unwritten
    memory (torch 2.13, CPU).

    Args:
        width: channels after the first halving; each halving doubles them.
        latent: of the code: channels at each place, or numbers where it is dense.
        resolution: voxels a side, 4 or 6 times a power of two.
        spatial: whether the code keeps its place in the volume.
        out_channels: of what ``decode`` gives.
        encoded: numbers that ``encode`` gives for each that ``decode`` takes.
        dropout: probability, in every hidden layer.

    Raises:
        ValueError: an impossible width, code or resolution.
    """

    def __init__(
        self,
        width: int,
        latent: int,
        resolution: int,
        spatial: bool = True,
        out_channels: int = 1,
        encoded: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_width(width)
        if latent < 1:
            raise ValueError(f"latent must be at least 1, not {latent}")
        base, doublings = base_and_doublings(resolution)
        halvings = max(doublings - 1, 1)
        widths = [width * 2**i for i in range(halvings)]
        ends = AutoEncoder(3, 1, out_channels, widths, [2] * halvings, act=ACTIVATION, norm=NORM, dropout=dropout)
        self.encoder, self.decoder = ends.encode, ends.decode
        shape = (widths[-1], *(base * 2 ** (doublings - halvings),) * 3)
        self.narrow: nn.Module
        self.widen: nn.Module
        if spatial:
            self.narrow = nn.Conv3d(widths[-1], encoded * latent, 1)
            self.widen = nn.Conv3d(latent, widths[-1], 1)
        else:
            size = math.prod(shape)
            self.narrow = nn.Sequential(nn.Flatten(), nn.Linear(size, encoded * latent))
            self.widen = nn.Sequential(nn.Linear(latent, size), nn.Unflatten(1, shape))

    def encode(self, x: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` -> ``(B, encoded * latent, 8, 8, 8)``, or ``(B, encoded * latent)`` where it is dense."""
        return self.narrow(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """``(B, latent, 8, 8, 8)`` or ``(B, latent)`` -> ``(B, out_channels, D, H, W)``, unbounded, float32."""
        return self.decoder(self.widen(z)).float()

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` -> ``(B, out_channels, D, H, W)``."""
        return self.decode(self.encode(x))
