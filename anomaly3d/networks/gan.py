"""Generator, critic and encoder of Simarro Viana et al. 2020 (Fig. 3), for volumes or slices.

The base is the 3D GAN of Kwon et al. 2019 with a wider latent space and a tanh on the encoder's output. Shapes
below are for volumes of 64^3; another resolution is ``base * 2**n`` with ``base`` 4 or 6 (64, 96, 128, 192 ...)
and changes the number of blocks. ``spatial_dims=2`` gives the same networks for slices.

They may be told age and sex, ``person (B, 4)`` of ``networks/person.py``: ``concat`` puts the numbers beside z or, as
channels, beside the volume; ``film`` scales and shifts the channels at 4^3 by them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from anomaly3d.networks.layers import DownsampleConv, LeakyReLU, UpsampleConv
from anomaly3d.networks.person import NUMBERS, FiLM, Told, check_told, with_person

Norm = Literal["batch", "group", "none"]

BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
GROUPS = 8  # of GroupNorm
SLOPE = 0.2  # of LeakyReLU


def base_and_doublings(resolution: int) -> tuple[int, int]:
    """Split a resolution into ``base * 2**doublings`` with ``base`` 4 or 6.

    >>> base_and_doublings(64), base_and_doublings(96)
    ((4, 4), (6, 4))

    Raises:
        ValueError: the resolution is not 4 or 6 times a power of two, or has no doubling at all.
    """
    for base in (4, 6):
        doublings = (resolution // base).bit_length() - 1
        if doublings >= 1 and resolution == base * 2**doublings:
            return base, doublings
    raise ValueError(f"resolution must be 4 or 6 times a power of two (32, 48, 64, 96, 128 ...), not {resolution}")


def norm_layer(norm: Norm, channels: int, spatial_dims: int) -> nn.Module:
    """The normalisation between a convolution and its activation.

    Only ``batch`` (the paper's) makes one sample's output depend on the others of its batch.
    """
    if norm == "batch":
        return BATCH_NORM[spatial_dims](channels)
    if norm == "group":
        return nn.GroupNorm(min(GROUPS, channels), channels)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"a norm must be 'batch', 'group' or 'none', not {norm!r}")


def upsampling_blocks(widths: Sequence[int], norm: Norm, spatial_dims: int) -> nn.Sequential:
    """Blocks that double each side, from each of ``widths`` to the next."""
    blocks: list[nn.Module] = []
    for wide, narrow in pairwise(widths):
        blocks += [
            UpsampleConv(wide, narrow, spatial_dims),
            norm_layer(norm, narrow, spatial_dims),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*blocks)


class Generator(nn.Module):
    """Latent vector -> volume in [-1, 1].

    Args:
        channels: width of the last hidden block (64 in the paper); each block before it is twice as wide.
        latent: size of z (2500 in the paper).
        told: how it learns who is to be shown.
    """

    def __init__(
        self,
        channels: int = 64,
        latent: int = 2500,
        resolution: int = 64,
        norm: Norm = "group",
        spatial_dims: int = 3,
        told: Told = "none",
    ) -> None:
        super().__init__()
        check_told(told)
        self.told = told
        base, doublings = base_and_doublings(resolution)
        widths = [channels * 2**i for i in range(doublings - 1, -1, -1)]  # 512, 256, 128, 64
        self.seed_shape = (widths[0], *(base,) * spatial_dims)
        # a transposed convolution on a 1^3 input is this linear layer
        self.seed = nn.Linear(latent + NUMBERS * (told == "concat"), widths[0] * base**spatial_dims, bias=False)
        self.seed_norm = norm_layer(norm, widths[0], spatial_dims)
        self.film = FiLM(widths[0]) if told == "film" else None
        self.blocks = upsampling_blocks(widths, norm, spatial_dims)
        self.to_image = UpsampleConv(widths[-1], 1, spatial_dims)

    def forward(self, z: Tensor, person: Tensor | None = None) -> Tensor:
        """``(B, latent)`` -> ``(B, 1, D, H, W)`` in [-1, 1]."""
        x = self.seed(with_person(z, person) if self.told == "concat" else z)
        x = self.seed_norm(x.unflatten(1, self.seed_shape))  # (B, 512, 4, 4, 4)
        x = torch.relu(x if self.film is None else self.film(x, person))
        x = self.blocks(x)  # 8^3, 16^3, 32^3
        return torch.tanh(self.to_image(x))  # 64^3


class Trunk(nn.Module):
    """Convolutions that halve, shared in shape by critic and encoder: ``(B, 1, 64^3)`` -> ``(B, 512, 4^3)``."""

    def __init__(self, channels: int, resolution: int, norm: Norm, spatial_dims: int, told: Told = "none") -> None:
        super().__init__()
        check_told(told)
        self.told = told
        self.base, doublings = base_and_doublings(resolution)
        seen = 1 + NUMBERS * (told == "concat")
        layers: list[nn.Module] = [DownsampleConv(seen, channels, spatial_dims), LeakyReLU(SLOPE)]
        for i in range(doublings - 1):
            narrow, wide = channels * 2**i, channels * 2 ** (i + 1)
            layers += [
                DownsampleConv(narrow, wide, spatial_dims),
                norm_layer(norm, wide, spatial_dims),
                LeakyReLU(SLOPE),
            ]
        self.layers = nn.Sequential(*layers)
        self.ends = [i for i, layer in enumerate(layers, start=1) if isinstance(layer, LeakyReLU)]
        self.width = channels * 2 ** (doublings - 1)
        self.features = self.width * self.base**spatial_dims
        self.film = FiLM(self.width) if told == "film" else None

    def forward(self, x: Tensor, person: Tensor | None = None, halvings: int | None = None) -> Tensor:
        """``(B, 1, D, H, W)`` -> ``(B, 8 * channels, base, base, base)``.

        Args:
            halvings: after how many of the convolutions to stop; None: after all.
        """
        if self.told == "concat":
            x = with_person(x, person)
        if halvings is not None:
            return self.layers[: self.ends[halvings - 1]](x)
        x = self.layers(x)
        return x if self.film is None else self.film(x, person)


class Critic(nn.Module):
    """Volume -> one unbounded number a volume; ``features`` is f(x) of eq. 5.

    ``norm="batch"`` is the paper's; it makes a sample's gradient depend on its batch, so the penalty of eq. 2 is
    ill-defined there. The default has none.
    """

    def __init__(
        self,
        channels: int = 64,
        resolution: int = 64,
        norm: Norm = "none",
        spatial_dims: int = 3,
        told: Told = "none",
    ) -> None:
        super().__init__()
        self.trunk = Trunk(channels, resolution, norm, spatial_dims, told)
        self.head = nn.Linear(self.trunk.features, 1)  # what a convolution over the whole of f(x) is

    def features(self, x: Tensor, halvings: int | None = None, person: Tensor | None = None) -> Tensor:
        """f(x), after the LeakyReLU of the marked layer: ``(B, 1, D, H, W)`` -> ``(B, 512, 4, 4, 4)``.

        Args:
            halvings: after how many of the trunk's convolutions; None: after all.
        """
        return self.trunk(x, person, halvings)

    def forward(self, x: Tensor, person: Tensor | None = None) -> Tensor:
        """``(B, 1, D, H, W)`` -> ``(B,)``."""
        return self.head(self.trunk(x, person).flatten(1)).flatten()


class Encoder(nn.Module):
    """Volume -> latent vector.

    Args:
        output: ``tanh`` bounds each coordinate to (-1, 1) as in the paper, though 32 % of N(0, 1) lies outside;
            ``linear`` does not.
    """

    def __init__(
        self,
        channels: int = 64,
        latent: int = 2500,
        resolution: int = 64,
        norm: Norm = "group",
        output: Literal["tanh", "linear"] = "tanh",
        spatial_dims: int = 3,
        told: Told = "none",
    ) -> None:
        super().__init__()
        self.trunk = Trunk(channels, resolution, norm, spatial_dims, told)
        self.head = nn.Linear(self.trunk.features, latent)  # what a convolution over the whole of f(x) is
        if output not in ("tanh", "linear"):
            raise ValueError(f"encoder_output must be 'tanh' or 'linear', not {output!r}")
        self.output = nn.Tanh() if output == "tanh" else nn.Identity()

    def forward(self, x: Tensor, person: Tensor | None = None) -> Tensor:
        """``(B, 1, D, H, W)`` -> ``(B, latent)``."""
        return self.output(self.head(self.trunk(x, person).flatten(1)))
