"""Gaussian-mixture VAE whose prior restores a scan (You et al. 2019; the model is that of Dilokthanakul et al. 2016).

p(w) = N(0, I), p(c) uniform over K components, p(z | w, c) = N(mu_c(w), sigma_c(w)), p(x | z) = N(G(z), sigma I);
q(z | x) and q(w | x) are normal, q(c) = p(c | z, w). All latent variables have their own values at each place.
"""

import math

import torch
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.losses import absolute_distance
from anomaly3d.detectors.normal import divergence, drawn
from anomaly3d.networks.spatial import SpatialDecoder, SpatialEncoder


def total_variation(x: Tensor) -> Tensor:
    """Sum of absolute differences of neighbours along each axis of ``(B, 1, D, H, W)``: ``(B,)``."""
    return torch.stack([x.diff(dim=axis).abs().flatten(1).sum(1) for axis in (2, 3, 4)]).sum(0)


class GMVAE(Detector):
    """A(x) = mean |x - r| where r, the restored scan, climbs ELBO(r) - lambda * TV(r - x) from r = x.

    Its numbers are in units of sigma^2: ``surprise`` is -sigma^2 * ELBO, summed over voxels, without constants.

    Args:
        channels: of the encoder's first layer.
        halvings: of each side, from volume to latent space.
        latent: channels of z.
        context: channels of w.
        components: K; 1 leaves a VAE with the prior p(z | w).
        sigma: standard deviation of a voxel around G(z).
        steps: of the restoration, by its plain gradient.
        rate: length of a step; of a voxel's difference to G(z), this share is taken away.
        tv: lambda, in units of [-1, 1].

    Raises:
        ValueError: one of them is below what it can be.
    """

    title = "Gaussian-mixture VAE with restoration"
    needs_gradients = True

    def __init__(
        self,
        channels: int = 16,
        halvings: int = 3,
        latent: int = 8,
        context: int = 4,
        components: int = 6,
        sigma: float = 0.1,
        steps: int = 40,
        rate: float = 0.1,
        tv: float = 0.02,
    ) -> None:
        super().__init__()
        if min(latent, context, components) < 1 or steps < 0 or sigma <= 0:
            raise ValueError(
                f"latent ({latent}), context ({context}) and components ({components}) must be at least 1, steps "
                f"({steps}) at least 0 and sigma ({sigma}) above 0"
            )
        self.multiple = 2**halvings
        self.sizes = [latent, latent, context, context]
        self.latent, self.components, self.sigma = latent, components, sigma
        self.steps, self.rate, self.tv = steps, rate, tv
        self.encoder = SpatialEncoder(channels, halvings, sum(self.sizes))
        self.prior = nn.Sequential(
            nn.Conv3d(context, 4 * channels, 1), nn.Tanh(), nn.Conv3d(4 * channels, 2 * components * latent, 1)
        )
        self.decoder = SpatialDecoder(channels, halvings, latent)

    def divergences(
        self, z: Tensor, w: Tensor, of_z: tuple[Tensor, Tensor], of_w: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """The three divergences of the ELBO in nats, ``(B,)`` each: of q(z | x) from the mixture's components, of
        q(w | x) from N(0, I), of p(c | z, w) from uniform.

        Args:
            z, w: drawn, ``(B, latent, d, h, w)`` and ``(B, context, d, h, w)``.
            of_z, of_w: mean and log variance of q(z | x) and q(w | x).
        """
        parameters = self.prior(w).float().unflatten(1, (2, self.components, self.latent))
        means, logvars = parameters.unbind(1)  # (B, K, latent, d, h, w)
        mean, logvar, point = (value[:, None] for value in (*of_z, z))
        evidence = -((point - means).square() * (-logvars).exp() + logvars).sum(2) / 2
        log_share = evidence.log_softmax(1)  # log p(c | z, w)
        share = log_share.exp()
        of_components = divergence(mean, logvar, means, logvars).sum(2)
        return {
            "kl_z": (share * of_components).flatten(1).sum(1),
            "kl_w": divergence(*of_w).flatten(1).sum(1),
            "kl_c": (share * (log_share + math.log(self.components))).flatten(1).sum(1),
        }

    def elbo(self, x: Tensor, draw: bool) -> dict[str, Tensor]:
        """``surprise`` = ``error`` + sigma^2 * (``kl_z`` + ``kl_w`` + ``kl_c``), ``(B,)`` each.

        Args:
            x: ``(B, 1, D, H, W)``.
            draw: z and w from their posteriors; else they are the means.
        """
        mean_z, logvar_z, mean_w, logvar_w = self.encoder(x).float().split(self.sizes, 1)
        z, w = (drawn(mean, logvar) if draw else mean for mean, logvar in ((mean_z, logvar_z), (mean_w, logvar_w)))
        error = (x - self.decoder(z).float()).square().flatten(1).sum(1) / 2
        divergences = self.divergences(z, w, (mean_z, logvar_z), (mean_w, logvar_w))
        surprise = error + self.sigma**2 * torch.stack(list(divergences.values())).sum(0)
        return {"surprise": surprise, "error": error, **divergences}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``surprise`` for each voxel, and its parts: ``error`` for each voxel, divergences in nats for each volume."""
        x = batch["image"]
        found = {name: value.mean() for name, value in self.elbo(x, draw=True).items()}
        voxels = x[0].numel()
        return {"loss": found.pop("surprise") / voxels, "error": found.pop("error") / voxels, **found}

    def quick_score(self, batch: Batch) -> Tensor:
        return self.elbo(batch["image"], draw=False)["surprise"]

    def restore(self, x: Tensor) -> Tensor:
        """r of each volume: ``(B, 1, D, H, W)`` in [-1, 1] -> the same shape."""
        restored = x.detach()
        with torch.enable_grad():
            for _ in range(self.steps):
                restored.requires_grad_()
                loss = self.elbo(restored, draw=False)["surprise"] + self.tv * total_variation(restored - x)
                (gradient,) = torch.autograd.grad(loss.sum(), restored)
                restored = (restored.detach() - self.rate * gradient).clamp(-1, 1)
        return restored

    def examine(self, batch: Batch) -> Findings:
        """``total``, and ``surprise`` of the scan as it is, for each voxel."""
        x = batch["image"]
        restored = self.restore(x)
        with torch.no_grad():
            surprise = self.quick_score(batch) / x[0].numel()
        return Findings({"total": absolute_distance(x, restored), "surprise": surprise}, restored)
