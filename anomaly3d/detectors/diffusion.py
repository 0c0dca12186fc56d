"""A diffusion model as detector (AnoDDPM, Wyatt et al. 2022): a scan is noised in part, then denoised."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.losses import image_distance
from anomaly3d.detectors.noise import noise_of
from anomaly3d.errors import UserError
from anomaly3d.networks.diffusion_unet import DiffusionUNet

BETA = (1e-4, 0.02)  # variance of the first and the last step's noise, as Ho et al. 2020


class Diffusion(Detector):
    """A(x) = mean (x - x~)^2, where x~ is what a deterministic DDIM makes of sqrt(a_t) x + sqrt(1 - a_t) noise at
    t = ``start`` * ``times``.

    Args:
        widths: channels of the U-Net at a half, a quarter, ... of the resolution, multiples of 8.
        times: T, steps of the noising process.
        start: share of T that a scan is noised to, above 0 and at most 1. Only times up to there are trained.
        steps: of the denoising.
        coarse: side of the noise's grains in voxels; 1 is white noise.
        predicts: what the network says of x_t, its noise or the clean volume; each follows from the other.

    Raises:
        UserError: a start outside of (0, 1], more steps than times, another prediction, no grains or no level.
    """

    title = "diffusion model (AnoDDPM)"
    signal: Tensor

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 64),
        times: int = 1000,
        start: float = 0.25,
        steps: int = 10,
        coarse: int = 1,
        predicts: Literal["noise", "volume"] = "noise",
    ) -> None:
        super().__init__()
        self.start, self.steps, self.coarse, self.predicts = round(start * times), steps, coarse, predicts
        if predicts not in ("noise", "volume"):
            raise UserError(f"detector.module.predicts must be noise or volume, not {predicts}")
        if not 1 <= steps <= self.start <= times:
            raise UserError(
                f"detector.module.start ({start}) must be at most 1, and of {times} times hold at least the {steps} "
                "of detector.module.steps"
            )
        if coarse < 1 or not widths:
            raise UserError(
                f"detector.module.coarse ({coarse}) must be at least 1, and detector.module.widths ({list(widths)}) "
                "name the channels of a level or more"
            )
        self.network, self.multiple = DiffusionUNet(widths), 2 ** len(widths)
        kept = (1 - torch.linspace(*BETA, times, dtype=torch.double)).cumprod(0)
        self.register_buffer("signal", torch.cat([torch.ones(1), kept.float()]), persistent=False)  # a_0 ... a_T

    def noised(self, x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of volumes and noise ``(B, 1, D, H, W)`` at times ``t (B,)``."""
        kept = self.signal[t].view(-1, 1, 1, 1, 1)
        return kept.sqrt() * x + (1 - kept).sqrt() * noise

    def grains(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the noise for each of the volumes ``x`` before ``grown``."""
        return 1, *(-(-side // self.coarse) for side in x.shape[2:])

    def grown(self, noise: Tensor, x: Tensor) -> Tensor:
        """Noise in the shape of ``x``, of unit variance over each volume."""
        if self.coarse == 1:
            return noise
        noise = F.interpolate(noise, size=x.shape[2:], mode="trilinear")
        return noise / noise.flatten(1).std(1).view(-1, 1, 1, 1, 1)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of what the network predicts from x_t, at a time drawn for each volume."""
        x = batch["image"]
        t = dealt(lambda volumes: torch.randint(1, self.start + 1, (volumes,)), len(x)).to(x.device)
        noise = dealt(lambda volumes: torch.randn(volumes, *self.grains(x)), len(x))
        noise = self.grown(noise.to(x.device), x)
        target = noise if self.predicts == "noise" else x
        return {"loss": image_distance(target, self.network(self.noised(x, noise, t), t)).mean()}

    def reconstruct(self, x: Tensor) -> Tensor:
        """x~ of each volume: ``(B, 1, D, H, W)`` in [-1, 1] -> the same shape."""
        noise = self.grown(noise_of(x, *self.grains(x)), x)
        times = torch.linspace(self.start, 0, self.steps + 1).round().long().to(x.device)
        now = self.noised(x, noise, times[:1])
        for t, following in pairwise(times):
            found = self.network(now, t.expand(len(x))).float()
            of_signal, of_noise = self.signal[t].sqrt(), (1 - self.signal[t]).sqrt()
            if self.predicts == "noise":
                clean, seen = ((now - of_noise * found) / of_signal).clamp(-1, 1), found
            else:
                clean = found.clamp(-1, 1)
                seen = (now - of_signal * clean) / of_noise
            now = self.noised(clean, seen, following[None])
        return now

    def examine(self, batch: Batch) -> Findings:
        x = batch["image"]
        reconstruction = self.reconstruct(x)
        return Findings({"total": image_distance(x, reconstruction)}, reconstruction)
