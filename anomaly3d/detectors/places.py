"""HU statistics of places: the rim under the skull by depth and direction, and the brightest of each block of brain."""

import math

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.pasting import depth_of
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of

SHELLS = ((0.5, 1.5), (1.5, 2.5), (2.5, 4.5))  # voxels at 64^3 below the mask's surface: 0-3, 3-6, 6-11 mm
AZIMUTHS, ELEVATIONS = 8, 3
BLOCKS = 8  # along each side
BRIGHT = 0.95  # quantile of a block
INSIDE = 0.2  # share of a block's voxels below the surface, from which it counts
USUAL = 0.95  # share of training scans that have a number, from which it counts


class Places(Detector):
    """Mahalanobis distance of a scan's numbers to healthy ones, their covariance shrunk (Ledoit and Wolf 2004).

    The numbers, minus the brain's median: mean in shells under the mask's surface in each of ``AZIMUTHS * ELEVATIONS``
    directions from the centre, and the ``BRIGHT`` quantile in each of ``BLOCKS``^3 blocks. Blood in fluid or along the
    skull makes a place bright that a mean over the whole head does not show.
    """

    title = "rim and block statistics"
    fewest = 3
    kept: Tensor
    usual: Tensor
    spread: Tensor
    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("kept", "usual", "spread", "precision"):
            self.register_buffer(name, torch.empty(0))

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        found = torch.stack([numbers(x[0], brain[0] > 0) for x, brain in zip(train, brains, strict=True)])
        self.kept = (found.isfinite().float().mean(0) >= USUAL).nonzero()[:, 0]
        found = found[:, self.kept]
        self.usual = found.nanmean(0)
        filled = torch.where(found.isfinite(), found, self.usual)
        self.spread = filled.std(0).clamp_min(1e-3)
        fitted = LedoitWolf().fit(((filled - self.usual) / self.spread).cpu().double().numpy())
        self.precision = torch.from_numpy(fitted.precision_.astype(np.float32)).to(train.device)

    def examine(self, batch: Batch) -> Findings:
        """``total``: the squared distance over the number of places."""
        scans = zip(batch["image"].float(), brain_of(batch), strict=True)
        found = torch.stack([numbers(x[0], brain[0]) for x, brain in scans])[:, self.kept]
        z = torch.where(found.isfinite(), (found - self.usual) / self.spread, 0.0)
        return Findings({"total": ((z @ self.precision) * z).mean(1)})


def directions(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Which of the directions from the centre each voxel lies in, ``(D, H, W)`` int64."""
    lines = [torch.linspace(-1, 1, n, device=device) for n in shape]
    right, front, top = torch.meshgrid(*lines, indexing="ij")
    azimuth = ((torch.atan2(front, right) + math.pi) / (2 * math.pi) * AZIMUTHS).long() % AZIMUTHS
    sine = top / (right**2 + front**2 + top**2).sqrt().clamp(min=1e-6)  # thirds of it are thirds of the sphere
    elevation = ((sine + 1) / 2 * ELEVATIONS).long().clamp(max=ELEVATIONS - 1)
    return azimuth * ELEVATIONS + elevation


def numbers(x: Tensor, brain: Tensor) -> Tensor:
    """All numbers of a volume in [-1, 1] with its brain mask, ``(D, H, W)`` each; NaN where there is no brain."""
    if not brain.any():
        return x.new_full((len(SHELLS) * AZIMUTHS * ELEVATIONS + BLOCKS**3,), math.nan)
    y = x - x[brain].median()
    scale = max(x.shape) / 64
    depth = depth_of(brain, math.ceil(SHELLS[-1][1] * scale) + 1)
    level = torch.where(brain, (depth - 0.5) / scale + 0.5, 0.0)
    where, count = directions(tuple(x.shape), x.device), AZIMUTHS * ELEVATIONS
    found = []
    for low, high in SHELLS:
        inside = (level > low) & (level <= high)
        total, voxels = (
            torch.zeros(count, device=x.device).index_add_(0, where[inside], v[inside]) for v in (y, torch.ones_like(y))
        )
        found.append(total / voxels)
    sides = [n // BLOCKS for n in x.shape]
    inner = torch.where(level > 1.5, y, math.nan)
    blocks = inner.unfold(0, sides[0], sides[0]).unfold(1, sides[1], sides[1]).unfold(2, sides[2], sides[2])
    blocks = blocks[:BLOCKS, :BLOCKS, :BLOCKS].flatten(3).flatten(0, 2)
    bright = blocks.nanquantile(BRIGHT, 1)
    found.append(torch.where(blocks.isfinite().float().mean(1) >= INSIDE, bright, math.nan))
    return torch.cat(found)
