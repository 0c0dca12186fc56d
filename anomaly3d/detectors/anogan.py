"""AnoGAN (Schlegl et al. 2017) in three dimensions: no encoder, but a search for the latent vector of each scan."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Findings
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.detectors.losses import absolute_distance
from anomaly3d.detectors.noise import noise_of
from anomaly3d.errors import UserError


class AnoGAN(FAnoGAN):
    """A(x) = (1 - lambda) * |x - G(z)| + lambda * |f(x) - f(G(z))|, means of absolute differences, at the z where the
    search ends.

    Its networks are those of f-AnoGAN, so that it takes over a GAN that has been trained for one.

    Args:
        model: of ``ModelConfig``.
        weight: lambda, in [0, 1).
        steps: of the search, by Adam.
        rate: learning rate of the search.
        start: z of the first step: a draw from N(0, I) that the scan decides, or E(x). Not 0, where a generator with
            GroupNorm has no gradient.
        feature_layer, smooth: as for f-AnoGAN.

    Raises:
        UserError: networks that cannot be built, or a search that cannot be.
    """

    title = "3D AnoGAN"
    needs_gradients = True

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any],
        weight: float = 0.1,
        steps: int = 100,
        rate: float = 0.05,
        start: Literal["draw", "encoder"] = "draw",
        feature_layer: int | None = None,
        smooth: bool = False,
    ) -> None:
        if not 0 <= weight < 1:
            raise UserError(f"detector.module.weight must be at least 0 and less than 1, not {weight}")
        if start not in ("draw", "encoder"):
            raise UserError(f"detector.module.start must be draw or encoder, not {start}")
        if steps < 0 or rate <= 0:
            raise UserError(
                f"detector.module.steps ({steps}) must be at least 0 and detector.module.rate ({rate}) above 0"
            )
        super().__init__(model, weight / (1 - weight), feature_layer, smooth)
        self.needs_parent = start == "encoder"
        self.weight, self.steps, self.rate, self.start = weight, steps, rate, start

    def distances(self, x: Tensor, reconstruction: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """Residual loss, discrimination loss (its form by features) and A(x) for each volume, ``(B,)``."""
        image = absolute_distance(x, reconstruction)
        features = (self.critic.features(volume, self.feature_layer, *person) for volume in (x, reconstruction))
        feature = absolute_distance(*features)
        return {"image": image, "feature": feature, "total": (1 - self.weight) * image + self.weight * feature}

    def first(self, x: Tensor, *person: Tensor) -> Tensor:
        """Where the search begins: ``(B, latent)``."""
        if self.start == "encoder":
            return self.encoder(x, *person).detach().float()
        return noise_of(x, self.model.latent)

    def search(self, x: Tensor, *person: Tensor) -> Tensor:
        """z of each volume: ``(B, 1, D, H, W)`` -> ``(B, latent)``.

        The sum over volumes is minimised and Adam treats each number by itself, so no volume knows of another.
        """
        with torch.enable_grad():
            z = self.first(x, *person).requires_grad_()
            optimizer = torch.optim.Adam([z], self.rate)
            for _ in range(self.steps):
                found = self.distances(x, self.decode(z, *person), *person)
                (z.grad,) = torch.autograd.grad(found["total"].sum(), z)
                optimizer.step()
        return z.detach()

    def examine(self, batch: Batch) -> Findings:
        """``image``, ``feature``, ``total`` where the search ends."""
        x, person = batch["image"], self.person(batch)
        z = self.search(x, *person)
        with torch.no_grad():
            reconstruction = self.decode(z, *person)
            return Findings(self.distances(x, reconstruction, *person), reconstruction)
