"""f-AnoGAN in three dimensions: encoder, generator, and the critic's features, as one detector."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.files import written_whole
from anomaly3d.losses import feature_distance, image_distance
from anomaly3d.networks import Critic, Encoder, Generator, Norm


@dataclass(frozen=True)
class ModelConfig:
    """``conf/model``: what decides the networks' shapes."""

    channels: int
    latent: int
    resolution: int
    generator_norm: Norm
    critic_norm: Norm
    encoder_norm: Norm
    encoder_output: Literal["tanh", "linear"]
    spatial_dims: int

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ModelConfig":
        """From the plain dictionary of the config group.

        Raises:
            UserError: a key is missing, unknown or impossible.
        """
        try:
            return cls(**config)
        except TypeError as error:
            raise UserError(f"model config: {error}; compare with conf/model/compact.yaml") from error


class FAnoGAN(Detector):
    """A(x) = L_img + kappa * L_feat of eq. 6, with the reconstruction G(E(x))."""

    def __init__(self, model: ModelConfig, kappa: float = 1.0) -> None:
        super().__init__()
        self.model, self.kappa = model, kappa
        try:
            self.generator = Generator(
                model.channels, model.latent, model.resolution, model.generator_norm, model.spatial_dims
            )
            self.critic = Critic(model.channels, model.resolution, model.critic_norm, model.spatial_dims)
            self.encoder = Encoder(
                model.channels,
                model.latent,
                model.resolution,
                model.encoder_norm,
                model.encoder_output,
                model.spatial_dims,
            )
        except ValueError as error:
            raise UserError(f"model config: {error}") from error

    def reconstruct(self, x: Tensor) -> Tensor:
        """x~ = G(E(x))."""
        return self.generator(self.encoder(x))

    def distances(self, x: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """L_img (eq. 4), L_feat (eq. 5) and L_E (eq. 6) for each volume, ``(B,)``."""
        image = image_distance(x, reconstruction)
        feature = feature_distance(self.critic.features(x), self.critic.features(reconstruction))
        return {"image": image, "feature": feature, "total": image + self.kappa * feature}

    def score(self, x: Tensor) -> dict[str, Tensor]:
        """``image``, ``feature``, ``total``, and ``latent`` = ||E(x) - E(x~)||^2 / dim."""
        return self.examine({"image": x})[0]

    def examine(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        """``score`` and ``reconstruct`` with one pass of encoder and generator."""
        x = batch["image"]
        z = self.encoder(x)
        reconstruction = self.generator(z)
        latent = image_distance(z, self.encoder(reconstruction))
        return {**self.distances(x, reconstruction), "latent": latent}, reconstruction

    def save(self, path: Path) -> None:
        """Write config and weights; the file loads with ``weights_only=True``."""
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        with written_whole(path) as beside, beside.open("wb") as file:  # a path's name would be in the file
            torch.save({"model": asdict(self.model), "kappa": self.kappa, "state": state}, file)

    @classmethod
    def load(cls, path: Path) -> "FAnoGAN":
        """Read what ``save`` wrote, onto the CPU."""
        stored = torch.load(path, map_location="cpu", weights_only=True)
        detector = cls(ModelConfig(**stored["model"]), stored["kappa"])
        detector.load_state_dict(stored["state"])
        return detector
