"""The network of phase 4: it reads a scan beside its reconstruction and says where something is wrong."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from anomaly3d.networks.unet import VolumeUNet

CHANNELS = {"scan": 1, "reconstruction": 1, "residual": 1, "mirror": 1, "place": 3}  # of what it may see
LIMIT = 8.0  # healthy spreads beyond which a residual is as good as any


class ContrastNet(nn.Module):
    """A U-Net over the scan x, G(E(x)), their difference in healthy spreads, x minus its mirror image, and coordinates.

    Its first layer halves the resolution, so fine detail reaches it by what these channels hold, not by depth.

    Args:
        width, resolution: of ``VolumeUNet``.
        sees: of ``CHANNELS``.
        kinds: the anomalies of ``PASTED`` that it is taught with.

    Raises:
        ValueError: nothing or unknown things to see, nothing to teach, or an impossible width or resolution.
    """

    mean: Tensor
    spread: Tensor
    taught: Tensor

    def __init__(
        self, width: int, resolution: int, kinds: Sequence[str], sees: Sequence[str] = tuple(CHANNELS)
    ) -> None:
        super().__init__()
        if not sees or not set(sees) <= set(CHANNELS):
            raise ValueError(f"contrast.sees must name some of {', '.join(CHANNELS)}, not {list(sees)}")
        if not kinds:
            raise ValueError("contrast.kinds must name what to teach; contrast: null is without phase 4")
        self.sees, self.kinds = tuple(sees), tuple(kinds)
        self.net = VolumeUNet(width, resolution, sum(CHANNELS[name] for name in self.sees))
        shape = (1, resolution, resolution, resolution)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("spread", torch.ones(shape))
        self.register_buffer("taught", torch.tensor(False))

    def seen(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """What the U-Net gets of volumes ``(B, 1, D, H, W)``: ``(B, channels, D, H, W)``."""
        residual = (x - reconstruction - self.mean) / self.spread
        lines = [torch.linspace(-1, 1, n, device=x.device, dtype=x.dtype) for n in x.shape[2:]]
        every = {
            "scan": x,
            "reconstruction": reconstruction,
            "residual": residual.clamp(-LIMIT, LIMIT) / 4,
            "mirror": x - x.flip(2),
            "place": torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(len(x), -1, -1, -1, -1),
        }
        return torch.cat([every[name] for name in self.sees], 1)

    def forward(self, x: Tensor, reconstruction: Tensor) -> Tensor:
        """The logit that something is wrong at each voxel: ``(B, 1, D, H, W)`` in [-1, 1], twice -> the same shape."""
        return self.net(self.seen(x, reconstruction))
