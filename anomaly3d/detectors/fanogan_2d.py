"""f-AnoGAN (Schlegl et al. 2019) on axial slices, to stand beside the one on volumes: the paper's comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Findings
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.detectors.noise import noise_of
from anomaly3d.errors import UserError


class FAnoGAN2D(FAnoGAN):
    """The networks and phases of 3D f-AnoGAN with one axis less, on the middle axial slices of volumes.

    A step draws some slices of each volume; a scan is judged by all of them, and by one that its voxels draw. Outside
    of the middle the reconstruction is the scan itself.

    Args:
        model, kappa, feature_layer, smooth, mirrored: as for 3D f-AnoGAN; ``spatial_dims`` is 2.
        middle: from where to where slices are taken, as shares of the volume's height from below.
        slices: drawn of each volume in a training step.

    Raises:
        UserError: networks that cannot be built, or no slice.
    """

    title = "2D f-AnoGAN"
    spatial_dims = 2

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any],
        kappa: float = 1.0,
        feature_layer: int | None = None,
        smooth: bool = False,
        mirrored: bool = False,
        middle: Sequence[float] = (0.45, 0.7),
        slices: int = 8,
    ) -> None:
        super().__init__(model, kappa, feature_layer, smooth, mirrored)
        (low, high), self.slices = middle, slices
        self.middle = low, high
        if not 0 <= low < high <= 1 or not self.levels(self.model.resolution):
            raise UserError(
                f"detector.module.middle must be two shares of the height with slices between, not {middle}"
            )
        if slices < 1:
            raise UserError(f"detector.module.slices must be at least 1, not {slices}")

    def levels(self, height: int) -> range:
        """Which of a volume's axial slices are in the middle: places along W."""
        low, high = (round(share * height) for share in self.middle)
        return range(low, high)

    def shown(self, x: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """Slices ``(B * S, 1, D, H)`` of volumes ``(B, 1, D, H, W)``, one volume after the other: S drawn ones, or all
        of the middle."""
        levels = self.levels(x.shape[-1])
        between = levels.start, levels.stop
        if noise is None:
            chosen = torch.arange(*between).expand(len(x), -1)
        else:
            chosen = dealt(lambda n: torch.randint(*between, (n, self.slices), generator=noise), len(x))
        return x[torch.arange(len(x))[:, None], :, :, :, chosen].flatten(0, 1)

    def drawn(self, x: Tensor) -> Tensor:
        """The slice of each volume ``(B, 1, D, H, W)`` that the score ``slice`` is of: its place along W, ``(B,)``.

        All of the middle are equally likely; the scan's voxels decide, so that any model's test can ask for it again.
        """
        levels = self.levels(x.shape[-1])
        return levels.start + noise_of(x, len(levels)).argmax(1)

    def losses(self, x: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """``distances`` of each slice to its reconstruction; of each volume the means over its slices."""
        if x.ndim == 4:
            return super().losses(x, *person)
        return {name: v.view(len(x), -1).mean(1) for name, v in super().losses(self.shown(x), *person).items()}

    def examine(self, batch: Batch) -> Findings:
        """Scores of f-AnoGAN as means over slices, ``total`` also as ``maximum`` and of one ``slice``."""
        x = batch["image"]
        levels = self.levels(x.shape[-1])
        found = super().examine({**batch, "image": self.shown(x)})
        assert found.reconstruction is not None
        of_slices = {name: v.view(len(x), -1) for name, v in found.scores.items()}
        total, reconstruction = of_slices["total"], x.clone()
        reconstruction[..., levels.start : levels.stop] = found.reconstruction.unflatten(0, total.shape).movedim(1, -1)
        scores = {name: v.mean(1) for name, v in of_slices.items()}
        scores["maximum"] = total.amax(1)
        scores["slice"] = total.gather(1, self.drawn(x)[:, None] - levels.start)[:, 0]
        return Findings(scores, reconstruction)
