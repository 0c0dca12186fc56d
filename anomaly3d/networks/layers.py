"""The layers of the networks that torch has too, but slower here: they halve or double resolution, or rectify.

Nearest-neighbour upsampling by two followed by a 3-wide convolution is computed as one transposed convolution: along
each axis the pair equals one of kernel 4, stride 2, padding 1 whose kernel is a fixed linear map of the 3-wide kernel.
That takes 8 instead of 27 multiplications per output voxel and channel pair in 3D, and no upsampled copy in memory. The
3-wide kernel stays the parameter, so checkpoints hold the paper's network.
"""

import math

import torch
from torch import Tensor, nn

from anomaly3d.networks.derivatives import double, halve, leaky_relu

FOLD = ((0.0, 0.0, 1.0), (0.0, 1.0, 1.0), (1.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Kernel of width 4 for a transposed convolution from a kernel of width 3, along one axis."""


class UpsampleConv(nn.Module):
    """``conv(upsample_nearest(x, 2), weight, padding=1)`` without bias, exactly, also at the borders."""

    fold: Tensor

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.spatial_dims = spatial_dims
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *(3,) * spatial_dims))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # the default of torch's convolutions
        self.register_buffer("fold", torch.tensor(FOLD), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, D, H, W)`` -> ``(B, out_channels, 2D, 2H, 2W)``."""
        if self.spatial_dims == 3:
            return double(x, torch.einsum("oixyz,ax,by,cz->ioabc", self.weight, self.fold, self.fold, self.fold))
        return double(x, torch.einsum("oixy,ax,by->ioab", self.weight, self.fold, self.fold))


class DownsampleConv(nn.Module):
    """A convolution of kernel 4, stride 2, padding 1, with bias."""

    def __init__(self, in_channels: int, out_channels: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *(4,) * spatial_dims))
        self.bias = nn.Parameter(torch.empty(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # both as torch's convolutions
        nn.init.uniform_(self.bias, -1 / math.sqrt(self.weight[0].numel()), 1 / math.sqrt(self.weight[0].numel()))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, 2D, 2H, 2W)`` -> ``(B, out_channels, D, H, W)``."""
        return halve(x, self.weight, self.bias)


class LeakyReLU(nn.Module):
    """As torch's, any number of times differentiable at the cost of one."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return leaky_relu(x, self.slope)
