"""f-AnoGAN in three dimensions: encoder, generator, and the critic's features, as one detector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anomaly3d.data.batch import Batch
from anomaly3d.data.pasting import left_out
from anomaly3d.data.people import people
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.losses import feature_distance, image_distance
from anomaly3d.errors import UserError
from anomaly3d.networks.batch_norm import counted_once
from anomaly3d.networks.contrast import ContrastNet
from anomaly3d.networks.derivatives import CONV
from anomaly3d.networks.gan import Critic, Encoder, Generator, Norm
from anomaly3d.networks.layers import DownsampleConv, UpsampleConv
from anomaly3d.networks.person import Told

UNTOLD = 0.1  # share of training scans whose age and sex the networks are not told, so that they may be unknown


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
    spatial_dims: int = 3
    person: Told = "none"

    def __post_init__(self) -> None:
        if min(self.channels, self.latent) < 1:
            raise ValueError(f"channels ({self.channels}) and latent ({self.latent}) must be at least 1")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """From the plain dictionary of the config group.

        Raises:
            UserError: a key is missing, unknown or impossible.
        """
        try:
            return cls(**config)
        except TypeError as error:
            raise UserError(f"model config: {error}; compare with conf/model/compact.yaml") from error


class FAnoGAN(Detector):
    """A(x) = L_img + kappa * L_feat of eq. 6, with the reconstruction G(E(x)).

    Args:
        model: of ``ModelConfig``.
        kappa: weight of the feature distance.
        smooth: the reconstruction is G(E(x)) after a filter of 1/4, 1/2, 1/4 along each axis. Nearest-neighbour
            upsampling leaves steps between its blocks, lines along the axes in every reconstruction; this filter takes
            out the finest. The generator itself, which the critic sees in phase 1, stays as it is.
        mirrored: a scan is judged by the mean of two reconstructions, its own and its mirror image's turned back.
            An encoder's errors on both sides of a head are nearly independent, and heads are nearly symmetric.
        feature_layer: f(x) of eq. 5 is taken after so many of the critic's halvings; None: the last, 4^3.
        contrast: of ``ContrastNet``, which phase 4 teaches to see what was pasted into healthy scans; None: without.
        restored: kinds of ``PASTED`` that training scans of phases 2 and 3 get, of which their reconstruction is to be
            without; empty: none.

    Raises:
        UserError: networks that cannot be built.
    """

    title = "3D f-AnoGAN"
    parts = ("image", "feature")
    spatial_dims: ClassVar[int] = 3

    def __init__(
        self,
        model: ModelConfig | Mapping[str, Any],
        kappa: float = 1.0,
        feature_layer: int | None = None,
        smooth: bool = False,
        mirrored: bool = False,
        contrast: Mapping[str, Any] | None = None,
        restored: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.model = m = model if isinstance(model, ModelConfig) else ModelConfig.of(model)
        self.kappa, self.feature_layer, self.smooth, self.mirrored = float(kappa), feature_layer, smooth, mirrored
        self.restored = tuple(restored)
        if m.spatial_dims != self.spatial_dims:
            raise UserError(
                f"model.spatial_dims must be {self.spatial_dims} for {self.title}: detector=fanogan is of volumes, "
                "detector=fanogan_2d of slices"
            )
        n = m.spatial_dims
        try:
            self.generator = Generator(m.channels, m.latent, m.resolution, m.generator_norm, n, m.person)
            self.critic = Critic(m.channels, m.resolution, m.critic_norm, n, m.person)
            self.encoder = Encoder(m.channels, m.latent, m.resolution, m.encoder_norm, m.encoder_output, n, m.person)
        except ValueError as error:
            raise UserError(f"model config: {error}") from error
        try:
            self.contrast = ContrastNet(resolution=m.resolution, **contrast) if contrast else None
            left_out([*self.restored, *(contrast["kinds"] if contrast else ())])
        except (TypeError, ValueError) as error:
            raise UserError(f"detector.module.contrast and restored: {error}") from error
        there = len(self.critic.trunk.ends)
        if feature_layer not in (None, *range(1, there + 1)):
            raise UserError(f"detector.module.feature_layer must be null or 1 to {there}, not {feature_layer}")

    @property
    def contrasts(self) -> bool:
        """Whether phase 4 has taught it."""
        if torch.compiler.is_exporting():  # an exported graph has the reconstruction only, and may not ask a tensor
            return False
        return self.contrast is not None and bool(self.contrast.taught)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """The kinds that it was not taught with, in phase 4 or before."""
        contrast = self.contrast.kinds if self.contrast is not None and self.contrasts else ()
        return left_out([*contrast, *self.restored])

    def begin_with(self, parent: Detector) -> None:
        """Take over what an earlier phase learned; a network for phase 4 that was taught nothing is left as it is.

        Raises:
            UserError: it has learned to restore more than this one says, by which it would be judged then.
        """
        if isinstance(parent, FAnoGAN) and set(parent.restored) - set(self.restored):
            raise UserError(
                f"the phase before was trained with detector.module.restored=[{','.join(parent.restored)}]: say so "
                "again, or train it anew"
            )
        own = {k: v for k, v in self.state_dict().items() if k.startswith("contrast.")}
        learned = {k: v for k, v in parent.state_dict().items() if not k.startswith("contrast.")}
        self.load_state_dict(learned | own)

    def person(self, batch: Batch, noise: torch.Generator | None = None) -> tuple[Tensor, ...]:
        if self.model.person == "none" or "age" not in batch:
            return ()
        found = people(batch)
        if noise is None:
            return (found,)
        told = dealt(lambda scans: torch.rand(scans, generator=noise) >= UNTOLD, len(found))
        return (found * told[:, None].to(found),)

    def reconstruct(self, x: Tensor, *person: Tensor) -> Tensor:
        """x~ = G(E(x)): ``(B, 1, D, H, W)`` in [-1, 1] -> the same shape."""
        return self.decode(self.encoder(x, *person), *person)

    def judged_against(self, x: Tensor, z: Tensor, *person: Tensor) -> Tensor:
        """The reconstruction from ``z`` = E(x), and with ``mirrored`` its mean with that of the mirror image: the first
        axis of space runs from left to right."""
        once = self.decode(z, *person)
        return (once + self.reconstruct(x.flip(2), *person).flip(2)) / 2 if self.mirrored else once

    def decode(self, z: Tensor, *person: Tensor) -> Tensor:
        """The reconstruction from a latent vector: ``(B, latent)`` -> ``(B, 1, D, H, W)`` in [-1, 1]."""
        volume = self.generator(z, *person)
        return smoothed(volume) if self.smooth else volume

    def distances(self, x: Tensor, reconstruction: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """L_img (eq. 4), L_feat (eq. 5) and L_E (eq. 6) for each volume, ``(B,)``."""
        image = image_distance(x, reconstruction)
        features = (self.critic.features(volume, self.feature_layer, *person) for volume in (x, reconstruction))
        feature = feature_distance(*features)
        return {"image": image, "feature": feature, "total": image + self.kappa * feature}

    def losses(self, x: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """``distances`` of each volume to its reconstruction."""
        return self.distances(x, self.reconstruct(x, *person), *person)

    def examine(self, batch: Batch) -> Findings:
        """``image``, ``feature``, ``total``, and ``latent`` = ||E(x) - E(x~)||^2 / dim; after phase 4 logits as the map
        ``contrast``."""
        x, person = batch["image"], self.person(batch)
        z = self.encoder(x, *person)
        reconstruction = self.judged_against(x, z, *person)
        latent = image_distance(z, self.encoder(reconstruction, *person))
        maps = {"contrast": self.contrast(x, reconstruction)} if self.contrast is not None and self.contrasts else {}
        return Findings({**self.distances(x, reconstruction, *person), "latent": latent}, reconstruction, maps)

    def recompute_activations(self) -> None:
        """Keep only the inputs of the networks' convolutions; what lies between is computed again for gradients."""
        for layers in (self.generator.blocks, self.critic.trunk.layers, self.encoder.trunk.layers):
            recompute_between_convolutions(layers)


def smoothed(x: Tensor) -> Tensor:
    """1/4, 1/2, 1/4 along each axis of ``(B, 1, D, H, W)``, or of slices; -1 lies beyond the border."""
    kernel = line = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    for _ in x.shape[3:]:
        kernel = kernel[..., None] * line
    return CONV[x.ndim](x + 1, kernel[None, None], padding=1) - 1


def recompute_between_convolutions(layers: nn.Sequential) -> None:
    """Run ``layers`` in checkpoints that begin at its convolutions."""
    starts = [i for i, layer in enumerate(layers) if isinstance(layer, DownsampleConv | UpsampleConv)]
    groups = [layers[a:b] for a, b in pairwise([*starts, len(layers)])]

    def forward(x: Tensor) -> Tensor:
        for group in groups:
            x = checkpoint(group, x, use_reentrant=False, context_fn=partial(counted_once, group))
        return x

    layers.forward = forward  # type: ignore[method-assign]
