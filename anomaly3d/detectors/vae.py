"""The variational autoencoder (Kingma and Welling 2014), with the spatial code of Baur et al. 2018 or a dense one."""

import math

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of, completed, mean_inside, voxels_inside
from anomaly3d.detectors.likelihood import deviance
from anomaly3d.detectors.normal import divergence, drawn
from anomaly3d.networks.autoencoder import Autoencoder


class VAE(Detector):
    """Minus the evidence lower bound, in nats per voxel of the brain, is both loss and score.

    ``reconstruction`` is -log p(x | z) with p = N(decoder(z), spread^2) at each voxel, ``kl`` is
    KL(q(z | x) || N(0, 1)), ``total`` = ``reconstruction`` + beta * ``kl``. z is drawn from q in training and its mean
    in ``examine``.

    Args:
        width, latent, resolution, spatial: of ``Autoencoder``.
        beta: weight of the KL divergence; 1 makes ``total`` a bound (in expectation over z).
        spread: of the likelihood, in units of [-1, 1].

    Raises:
        ValueError: the spread is not positive.
    """

    title = "variational autoencoder"
    parts = ("reconstruction", "kl")
    signed = True

    def __init__(
        self, width: int, latent: int, resolution: int, beta: float, spread: float, spatial: bool = True
    ) -> None:
        super().__init__()
        if spread <= 0:
            raise ValueError(f"spread must be above 0, not {spread}")
        self.net = Autoencoder(width, latent, resolution, spatial, encoded=2)
        self.beta, self.spread = float(beta), spread

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), of the code's shape each."""
        mean, log_variance = self.net.encode(x).float().chunk(2, 1)
        return mean, log_variance

    def bound(self, batch: Batch, z: Tensor, kl: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """``total`` and its parts, ``(B,)`` each, for codes ``z`` with divergences ``kl (B, ...)``; and z decoded."""
        decoded, brain = self.net.decode(z), brain_of(batch)
        surprise = deviance(batch["image"], decoded, torch.full_like(decoded, 2 * math.log(self.spread)))
        reconstruction = (mean_inside(surprise, brain) + math.log(2 * math.pi)) / 2
        kl = kl.flatten(1).sum(1) / voxels_inside(brain)
        return {"total": reconstruction + self.beta * kl, "reconstruction": reconstruction, "kl": kl}, decoded

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The bound with one z a scan, reparametrised."""
        mean, log_variance = self.posterior(batch["image"])
        found = self.bound(batch, drawn(mean, log_variance), divergence(mean, log_variance))[0]
        total, *parts = (found[k] for k in ("total", *self.parts))
        return {"loss": total.mean(), **{k: v.mean() for k, v in zip(self.parts, parts, strict=True)}}

    def examine(self, batch: Batch) -> Findings:
        """The bound and its parts at the mean of q."""
        mean, log_variance = self.posterior(batch["image"])
        scores, decoded = self.bound(batch, mean, divergence(mean, log_variance))
        return Findings(scores, completed(batch["image"], decoded, brain_of(batch)))
