"""Encoder and decoder whose latent space keeps places: convolutions only, for volumes of any sides they can halve."""

from torch import Tensor, nn

from anomaly3d.networks.gan import Norm, Trunk, norm_layer, upsampling_blocks
from anomaly3d.networks.layers import UpsampleConv


class SpatialEncoder(nn.Module):
    """Volume -> ``outputs`` numbers for each place, of which there are ``2**-halvings`` along each axis.

    Args:
        channels: of the first layer; each after it is twice as wide.

    Raises:
        ValueError: one of them is below 1.
    """

    def __init__(self, channels: int, halvings: int, outputs: int, norm: Norm = "group") -> None:
        super().__init__()
        if min(channels, halvings, outputs) < 1:
            raise ValueError(f"channels ({channels}), halvings ({halvings}) and the code must be at least 1")
        self.trunk = Trunk(channels, 4 * 2**halvings, norm, 3)
        self.head = nn.Conv3d(self.trunk.width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` -> ``(B, outputs, D / 2**halvings, ...)``."""
        return self.head(self.trunk(x))


class SpatialDecoder(nn.Module):
    """The way back, to a volume in [-1, 1].

    Args:
        channels: of the last hidden layer; each before it is twice as wide.
        latent: numbers for each place.
    """

    def __init__(self, channels: int, halvings: int, latent: int, norm: Norm = "group") -> None:
        super().__init__()
        widths = [channels * 2**i for i in range(halvings - 1, -1, -1)]
        self.seed = nn.Sequential(nn.Conv3d(latent, widths[0], 1), norm_layer(norm, widths[0], 3), nn.ReLU())
        self.blocks = upsampling_blocks(widths, norm, 3)
        self.to_image = UpsampleConv(widths[-1], 1)

    def forward(self, z: Tensor) -> Tensor:
        """``(B, latent, d, h, w)`` -> ``(B, 1, d * 2**halvings, ...)`` in [-1, 1]."""
        return self.to_image(self.blocks(self.seed(z))).tanh()
