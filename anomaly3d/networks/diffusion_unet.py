"""A small 3D U-Net that knows how noisy its input is, for diffusion models."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from anomaly3d.networks.gan import norm_layer
from anomaly3d.networks.layers import DownsampleConv, UpsampleConv

CELL = 2  # voxels a side whose values are the channels of one place


def to_cells(x: Tensor) -> Tensor:
    """``(B, 1, D, H, W)`` -> ``(B, 8, D / 2, H / 2, W / 2)``: the voxels of each 2x2x2 cell as channels."""
    for _ in range(3):  # the axis that is next to be split stands third
        x = x.unflatten(2, (-1, CELL)).movedim(3, 1).flatten(1, 2).movedim(2, 4)
    return x


def from_cells(x: Tensor) -> Tensor:
    """The inverse of ``to_cells``."""
    for _ in range(3):
        x = x.movedim(4, 2).unflatten(1, (CELL, -1)).movedim(1, 3).flatten(2, 3)
    return x


class Residual(nn.Module):
    """Two 3-wide convolutions beside the identity; the time shifts what is between them."""

    def __init__(self, before: int, after: int, time: int) -> None:
        super().__init__()
        self.first = nn.Sequential(norm_layer("group", before, 3), nn.SiLU(), nn.Conv3d(before, after, 3, 1, 1))
        self.shift = nn.Linear(time, after)
        self.second = nn.Sequential(norm_layer("group", after, 3), nn.SiLU(), nn.Conv3d(after, after, 3, 1, 1))
        self.beside = nn.Identity() if before == after else nn.Conv3d(before, after, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``(B, before, d, h, w)`` and ``(B, time)`` -> ``(B, after, d, h, w)``."""
        return self.beside(x) + self.second(self.first(x) + self.shift(time)[:, :, None, None, None])


class DiffusionUNet(nn.Module):
    """Volume and time -> volume; it works on cells of 2x2x2 voxels.

    Args:
        widths: channels at a half, a quarter, ... of the resolution, multiples of 8.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.frequencies = 4 * widths[0]
        self.time = nn.Sequential(
            nn.Linear(self.frequencies, self.frequencies), nn.SiLU(), nn.Linear(self.frequencies, self.frequencies)
        )
        time, steps = self.frequencies, list(pairwise(widths))
        self.enter = nn.Conv3d(CELL**3, widths[0], 3, 1, 1)
        self.down = nn.ModuleList(Residual(width, width, time) for width in widths[:-1])
        self.shrink = nn.ModuleList(DownsampleConv(a, b) for a, b in steps)
        self.middle = Residual(widths[-1], widths[-1], time)
        self.grow = nn.ModuleList(UpsampleConv(b, a) for a, b in reversed(steps))
        self.up = nn.ModuleList(Residual(2 * a, a, time) for a, _ in reversed(steps))
        self.leave = nn.Sequential(norm_layer("group", widths[0], 3), nn.SiLU(), nn.Conv3d(widths[0], CELL**3, 3, 1, 1))
        nn.init.zeros_(self.leave[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.leave[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` and ``(B,)`` -> ``(B, 1, D, H, W)``; each side is a multiple of 2 to the number of
        widths."""
        time = self.time(sinusoids(t, self.frequencies))
        x = self.enter(to_cells(x))
        kept = []
        for residual, shrink in zip(self.down, self.shrink, strict=True):
            x = residual(x, time)
            kept.append(x)
            x = shrink(x)
        x = self.middle(x, time)
        for grow, residual in zip(self.grow, self.up, strict=True):
            x = residual(torch.cat([grow(x), kept.pop()], 1), time)
        return from_cells(self.leave(x))


def sinusoids(t: Tensor, count: int) -> Tensor:
    """Sines and cosines of times ``(B,)`` at ``count / 2`` frequencies from 1 to 1/10000: ``(B, count)``."""
    powers = torch.arange(count // 2, device=t.device) / (count // 2)
    angles = t[:, None] * torch.exp(-math.log(10_000) * powers)
    return torch.cat([angles.sin(), angles.cos()], 1)
