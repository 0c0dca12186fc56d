"""A U-Net for volumes that is cheap on a CPU: no convolution of many channels at full resolution."""

from monai.networks.nets import UNet
from torch import Tensor, nn

from anomaly3d.networks.gan import GROUPS, SLOPE, base_and_doublings

NORM = ("GROUP", {"num_groups": GROUPS})  # no sample depends on the others of its batch
ACTIVATION = ("LEAKYRELU", {"negative_slope": SLOPE})  # PReLU's gradient takes a fifth of a step on a CPU


def check_width(width: int) -> None:
    """Refuse what GroupNorm cannot divide.

    Raises:
        ValueError: not a multiple of ``GROUPS``.
    """
    if width < 1 or width % GROUPS:
        raise ValueError(f"width must be a multiple of {GROUPS}, not {width}")


class VolumeUNet(nn.Module):
    """MONAI's ``UNet`` down to 4^3 or 6^3.

    Args:
        width: channels after the first halving; each of the next two halvings doubles them.
        resolution: voxels a side, 4 or 6 times a power of two.

    Raises:
        ValueError: an impossible width or resolution.
    """

    def __init__(self, width: int, resolution: int, in_channels: int = 1, out_channels: int = 1) -> None:
        super().__init__()
        check_width(width)
        halvings = base_and_doublings(resolution)[1]
        widths = [width * 2 ** min(i, 2) for i in range(halvings + 1)]
        self.layers = UNet(3, in_channels, out_channels, widths, [2] * halvings, act=ACTIVATION, norm=NORM)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_channels, D, H, W)`` -> ``(B, out_channels, D, H, W)``, unbounded, float32."""
        return self.layers(x).float()
