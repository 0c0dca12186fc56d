"""Phase 2: the encoder against the frozen GAN (eqs. 4 to 6)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import HeadCTDataModule, data_of
from anomaly3d.data.pasting import taught_batch
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Alarm, OptimizerConfig, Phase, beside

Loss = Literal["image", "feature", "both"]
NETWORKS = ("generator", "critic", "encoder")
MINIMISED = {"image": "image", "feature": "feature", "both": "total"}  # by ``loss``
SPOILED = 0  # what random numbers are for
COUNT = 6  # volumes that health is measured on
SATURATED = 0.99  # |tanh| from which its gradient is gone


def check_loss(trained: Sequence[str], loss: str) -> None:
    """Refuse what cannot be trained.

    Raises:
        UserError: names the key.
    """
    if not trained or not set(trained) <= set(NETWORKS):
        raise UserError(f"phase.module.trained={list(trained)} must name at least one of {', '.join(NETWORKS)}")
    if loss not in MINIMISED:
        raise UserError(f"phase.module.loss must be {' or '.join(MINIMISED)}, not {loss}")
    if loss == "image" and "critic" in trained:
        raise UserError(
            "phase.module.loss=image does not depend on the critic: take it out of phase.module.trained, or take "
            "loss=feature or both"
        )


class EncoderPhase(Phase):
    """Minimise L_E = L_img + kappa * L_feat over the networks named in ``trained``; the others are frozen.

    Args:
        trained: of ``NETWORKS``. The critic has a part in L_feat only, by its features; its last layer stays.
        loss: what of L_E is minimised; the anomaly score A(x) stays L_E.
        head_inputs: a fully connected layer of the encoder with more inputs learns at the rate of one with so many.
            Adam moves each weight by the learning rate whatever its gradient, and each output sums over all of the
            trunk's: at 64^3 with 64 channels one step at 2e-4 moves it by up to 6.5, into the flat ends of tanh, where
            it stays. None: all at the same rate.

    Raises:
        UserError: no network to train, or one that the loss does not depend on.
    """

    name = "encoder"
    fixed_statistics = ("generator",)
    question = "Does the encoder find healthy heads?"
    panels = (
        ("Loss of healthy validation heads", ("val_loss",)),
        ("Pasted anomalies told apart", ("val_pseudo_auc",)),
        ("Image over feature distance", ("health_balance",)),
        ("Saturated tanh outputs", ("health_saturation",)),
        ("Validation over training loss", ("health_gap",)),
    )
    alarms: ClassVar[tuple[Alarm, ...]] = (
        Alarm("saturation", 0, 0.5, "most of the encoder's tanh outputs are at -1 or 1 and learn no more"),
        Alarm(
            "balance", 0.02, 50, "one of image and feature distance is all of the loss; change detector.module.kappa"
        ),
        Alarm("val_loss", 0, float("inf"), "the reconstruction of healthy heads gets worse at once", 1, True),
        Alarm("gap", 0, 10, "healthy training heads are reconstructed far better than others: too few scans"),
    )
    detector: FAnoGAN

    def __init__(
        self,
        detector: FAnoGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        trained: Sequence[str] = ("encoder",),
        loss: Loss = "both",
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
        head_inputs: int | None = 8192,
    ) -> None:
        check_loss(trained, loss)
        frozen = tuple(n for n in NETWORKS if n not in trained)
        kept = {"trained": list(trained), "loss": loss, "head_inputs": head_inputs}
        super().__init__(detector, optimizer, seed, frozen, scheduler, **kept)
        self.trained, self.minimised, self.head_inputs = tuple(trained), MINIMISED[loss], head_inputs

    def configure_optimizers(self) -> Any:
        """One for all trained networks, and its schedule; fully connected layers of the encoder by ``head_inputs``."""
        parameters = [p for n in self.trained for p in getattr(self.detector, n).parameters()]
        inputs, layers = self.head_inputs or math.inf, self.detector.encoder.modules()
        wide = [m for m in layers if isinstance(m, nn.Linear) and m.in_features > inputs and m.weight.requires_grad]
        apart = {p for layer in wide for p in layer.parameters()}
        groups = [[p for p in parameters if p not in apart], *(list(layer.parameters()) for layer in wide)]
        optimizer = self.make_optimizer([{"params": group} for group in groups])
        for layer, group in zip(wide, optimizer.param_groups[1:], strict=True):
            group["lr"] *= inputs / layer.in_features
        return self.scheduled(optimizer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L_E of ``image (B, 1, D, H, W)``; with ``detector.restored``, of healthy volumes to what is made of the same
        with anomalies."""
        person = self.person(batch, self.global_step)
        if kinds := self.detector.restored:
            donors = data_of(self.trainer).volumes("train")[:, 0]
            x, spoiled, *_ = taught_batch(batch, donors, kinds, self.noise(self.global_step, SPOILED))
            losses = self.with_loss(self.detector.distances(x, self.detector.reconstruct(spoiled, *person), *person))
        else:
            losses = self.losses(self.shown(batch["image"], self.global_step), *person)
        named = {f"{self.name}/{k}": v.detach().mean() for k, v in losses.items() if k != "total"}
        self.log_dict(named, batch_size=len(batch["image"]))
        return losses["loss"].mean()

    def losses(self, x: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """The distances of each volume to its reconstruction, and ``loss``, the one that is minimised."""
        return self.with_loss(self.detector.losses(x, *person))

    def with_loss(self, distances: dict[str, Tensor]) -> dict[str, Tensor]:
        """Distances, and ``loss``, the one that is minimised."""
        return {**distances, "loss": distances[self.minimised]}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """L_E on healthy validation scans, and how well it tells them from the same scans with something pasted in."""
        person = self.detector.person(batch)
        losses = self.losses(batch["image"], *person)
        for name in (n for n in losses if n != "total"):
            self.log_mean(f"val_{name}", losses[name].mean(), len(losses[name]))
        if self.detector.mirrored:  # what scans are judged by is not what is minimised
            both = (batch["image"], batch["pseudo"])
            return self.tell_apart(*(self.detector.quick_score({**batch, "image": x}) for x in both))
        return self.tell_apart(losses["total"], self.losses(batch["pseudo"], *person)["total"])

    def health(self, data: HeadCTDataModule) -> dict[str, float]:
        return self.balance(data.volumes("train"), data.volumes("validation"))

    @torch.no_grad()
    def balance(self, train: Tensor, validation: Tensor) -> dict[str, float]:
        """``saturation``: share of the encoder's outputs beyond ``SATURATED``. ``balance``: image over weighted feature
        distance. ``gap``: loss of healthy validation heads over that of training heads.

        Args:
            train, validation: healthy volumes ``(N, 1, D, H, W)``.
        """
        detector = self.detector
        losses = []
        for volumes in (train[:COUNT], validation[:COUNT]):
            x = detector.shown(volumes).to(self.device)
            z = detector.encoder(x)
            losses.append({k: float(v.mean()) for k, v in detector.distances(x, detector.decode(z)).items()})
        bounded = detector.model.encoder_output == "tanh"
        unseen = losses[1]
        return {
            "saturation": float((z.abs() > SATURATED).float().mean()) if bounded else 0.0,
            "balance": unseen["image"] / max(detector.kappa * unseen["feature"], 1e-12),
            "gap": unseen["total"] / max(losses[0]["total"], 1e-12),
        }

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        found = self.detector.examine(batch).reconstruction
        assert found is not None
        return {"reconstructions": beside(batch["image"], found)}
