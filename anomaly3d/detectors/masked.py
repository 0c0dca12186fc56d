"""Masked prediction: every voxel is predicted from blocks that do not hold it (RIAD, Zavrtanik et al. 2021)."""

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of, mean_inside
from anomaly3d.detectors.likelihood import deviance, gaussian_findings, mean_and_log_variance
from anomaly3d.networks.unet import VolumeUNet

SEED = 0  # of the partition in ``examine``
HIDDEN = 0.0  # what hidden voxels hold in the network's input


def partition(shape: tuple[int, ...], block: int, parts: int, generator: torch.Generator | None = None) -> Tensor:
    """To which of ``parts`` equal parts each voxel belongs, as its cube of side ``block`` was drawn: ``(D, H, W)``."""
    cubes = [-(-side // block) for side in shape]
    count = cubes[0] * cubes[1] * cubes[2]
    drawn = (torch.randperm(count, generator=generator) % parts).view(*cubes)
    for axis, side in enumerate(shape):
        drawn = drawn.repeat_interleave(block, axis).narrow(axis, 0, side)
    return drawn


class MaskedPrediction(Detector):
    """A U-Net is given the scan without some blocks, and where they are; it predicts mean and variance inside them.

    Args:
        width, resolution: of ``VolumeUNet``.
        block: side of a block in voxels.
        passes: in how many equal parts the blocks are hidden, one after the other.
        floor: of the spread, in units of [-1, 1].

    Raises:
        ValueError: fewer than 2 passes, no voxel in a block, or a floor that is not positive.
    """

    title = "masked prediction"

    def __init__(self, width: int, resolution: int, block: int, passes: int, floor: float) -> None:
        super().__init__()
        if passes < 2 or block < 1 or floor <= 0:
            given = f"{passes}, {block} and {floor}"
            raise ValueError(f"passes must be 2 or more, block 1 or more, floor above 0, not {given}")
        self.net = VolumeUNet(width, resolution, in_channels=2, out_channels=2)
        self.block, self.passes, self.floor = block, passes, floor

    def predict(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of each voxel; what they are worth is known where ``hidden (B, 1, D, H, W)``, bool."""
        seen = torch.cat([torch.where(hidden, HIDDEN, x), hidden.to(x.dtype)], 1)
        return mean_and_log_variance(self.net(seen), self.floor)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean deviance over what is hidden of the brain: one part of a partition drawn for each scan."""
        x = batch["image"]

        def partitions(volumes: int) -> Tensor:
            return torch.stack([partition(x.shape[2:], self.block, self.passes) for _ in range(volumes)])

        parts = dealt(partitions, len(x))[:, None]
        hidden = (parts.to(x.device) == 0) & brain_of(batch)
        return {"loss": mean_inside(deviance(x, *self.predict(x, hidden)), hidden).mean()}

    def examine(self, batch: Batch) -> Findings:
        """See ``gaussian_findings``; the partition is the same for all scans."""
        x, brain = batch["image"], brain_of(batch)
        parts = partition(x.shape[2:], self.block, self.passes, torch.Generator().manual_seed(SEED)).to(x.device)
        mean, log_variance = torch.zeros_like(x), torch.zeros_like(x)
        for number in range(self.passes):
            hidden = (parts == number) & brain
            predicted = self.predict(x, hidden)
            mean, log_variance = (
                torch.where(hidden, new, old) for new, old in zip(predicted, (mean, log_variance), strict=True)
            )
        return gaussian_findings(batch, mean, log_variance.exp())
