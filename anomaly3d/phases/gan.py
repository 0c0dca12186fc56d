"""Phase 1: a WGAN-GP on healthy volumes (eqs. 2 and 3)."""

import math
from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, ClassVar

import torch
from monai.metrics import MMDMetric, MultiScaleSSIMMetric
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import HeadCTDataModule, data_of
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.detectors.losses import critic_losses
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Alarm, OptimizerConfig, Phase

CRITIC, GENERATOR, EPSILON, SAMPLES, DIRECTION = range(5)  # what random numbers are for
PENALTIES = ("exact", "lazy", "approximate")
NEIGHBOURS = 500  # training volumes among which the nearest is sought
COUNT = 6  # volumes that are compared with each other
KERNEL, SCALES = 7, (0.2, 0.3, 0.5)  # of MS-SSIM; the default needs more than 160 voxels a side


class GANPhase(Phase):
    """Critic and generator in turn; every batch is a critic step, every ``critic_steps``-th also a generator step.

    Args:
        lambda_gp: weight of the gradient penalty.
        critic_steps: critic steps for each generator step.
        generator_optimizer: of the generator; None: as the critic's.
        penalty: ``exact``, the gradient of a gradient; ``lazy``, the same in every ``penalty_every``-th step, times as
            much; ``approximate``, from two values of the critic beside each other.

    Raises:
        UserError: there is no such penalty.
    """

    name = "gan"
    monitors: ClassVar[dict[str, str]] = {}  # no label-free number ranks GANs well
    can_score = False
    generating: ClassVar[tuple[str, ...]] = ("generator",)  # networks that its second optimizer trains
    idle: ClassVar[tuple[str, ...]] = ("encoder",)  # networks that it leaves as they are
    question = "Is the GAN healthy?"
    panels: ClassVar[tuple[tuple[str, tuple[str, ...]], ...]] = (
        ("Gradient norm: near 1", ("gradient_norm",)),
        ("Wasserstein estimate: grows, then falls slowly", ("wasserstein", "val_wasserstein")),
        ("Samples alike: near 0, up is collapse", ("health_sameness",)),
        ("Samples far from heads: falls below 1", ("health_distance",)),
        ("Samples copy training heads: below 0.5", ("health_copying",)),
        ("Critic overfits: towards 1", ("health_overfitting",)),
    )
    alarms: ClassVar[tuple[Alarm, ...]] = (
        Alarm("sameness", -1, 0.15, "samples look more alike than real heads do, which is mode collapse"),
        Alarm(
            "distance", 0, 1, "the average sample is far from the average real head; train longer, or it diverges", 4
        ),
        Alarm(
            "copying",
            0.5,
            math.inf,
            "samples lie closer to training scans than other healthy heads do: they are copied",
        ),
        Alarm(
            "gradient_norm",
            0.5,
            2.5,
            "the penalty should hold it near 1; raise lambda_gp or lower the learning rate",
            6,
        ),
        Alarm("wasserstein", -math.inf, math.inf, "the critic has run away from the generator", 2, True),
        Alarm("overfitting", -math.inf, 0.7, "the critic tells training heads from other healthy heads: too few scans"),
    )
    detector: FAnoGAN

    def __init__(
        self,
        detector: Detector | Mapping[str, Any],
        optimizer: OptimizerConfig,
        lambda_gp: float,
        critic_steps: int,
        generator_optimizer: OptimizerConfig | None = None,
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
        penalty: str = "exact",
        penalty_every: int = 4,
    ) -> None:
        if penalty not in PENALTIES or penalty_every < 1:
            raise UserError(
                f"phase.module.penalty must be one of {', '.join(PENALTIES)} and penalty_every at least 1, "
                f"not {penalty} and {penalty_every}"
            )
        kept = {
            "lambda_gp": lambda_gp,
            "critic_steps": critic_steps,
            "penalty": penalty,
            "penalty_every": penalty_every,
        }
        if isinstance(generator_optimizer, Mapping):
            kept["generator_optimizer"] = dict(generator_optimizer)
        super().__init__(detector, optimizer, seed, self.idle, scheduler, **kept)
        self.generator_optimizer = generator_optimizer
        self.automatic_optimization = False
        if critic_steps < 1:
            raise ValueError(f"critic_steps must be at least 1, not {critic_steps}")
        self.lambda_gp, self.critic_steps = float(lambda_gp), critic_steps
        self.penalty, self.penalty_every = penalty, penalty_every
        self.batches_seen = 0
        self.alikeness_of_real: float | None = None  # which does not change

    def configure_optimizers(self) -> Any:
        """One for the critic, one for the generator, each with its schedule."""
        generating = [p for name in self.generating for p in getattr(self.detector, name).parameters()]
        return (
            self.scheduled(self.make_optimizer(self.judging())),
            self.scheduled(self.make_optimizer(generating, self.generator_optimizer)),
        )

    def judging(self) -> list[nn.Parameter]:
        """What the first optimizer trains."""
        return list(self.detector.critic.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint["batches_seen"]

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """A critic step on ``image (B, 1, D, H, W)``, and when it is its turn a generator step."""
        optimizers: Any = self.optimizers()
        critic_optimizer, generator_optimizer = optimizers
        schedules: Any = self.lr_schedulers() or (None, None)
        real, person = self.shown(batch["image"], self.batches_seen), self.person(batch, self.batches_seen)
        self.critic_step(real, critic_optimizer, *person)
        self.batches_seen += 1
        if schedules[0]:
            schedules[0].step()
        if self.batches_seen % self.critic_steps == 0:
            self.generator_step(real, generator_optimizer, *person)
            for _ in range(self.critic_steps if schedules[1] else 0):  # both count batches
                schedules[1].step()

    def latent(self, batch: int, step: int, purpose: int) -> Tensor:
        """z ~ N(0, I): ``(B, latent)`` on the phase's device."""
        z = torch.randn(batch, self.detector.model.latent, generator=self.noise(step, purpose))
        return z.to(self.device)

    def critic_loss(
        self, real: Tensor, fake: Tensor, epsilon: Tensor, *person: Tensor, each: int = 1
    ) -> dict[str, Tensor]:
        """Eq. 2 as ``critic_loss``, and its parts; of ``real`` each volume is there ``each`` times."""
        weight, noise = self.lambda_gp, None
        if self.penalty == "lazy":
            weight *= self.penalty_every if self.batches_seen % self.penalty_every == 0 else 0
        if self.penalty == "approximate":
            noise = self.direction(real[: len(real) // each]).repeat(each, *(1,) * (real.ndim - 1))
        return critic_losses(self.detector.critic, real, fake, epsilon, weight, *person, noise=noise)

    def direction(self, real: Tensor) -> Tensor:
        """N(0, I) for each of ``(B, ...)``."""
        with self.seeded(self.batches_seen, DIRECTION):
            return dealt(lambda volumes: torch.randn(volumes, *real.shape[1:], device=real.device), len(real))

    def generator_loss(self, z: Tensor, *person: Tensor) -> Tensor:
        """Eq. 3."""
        return -self.detector.critic(self.detector.generator(z, *person), *person).float().mean()

    def codes(self, size: int, purpose: int) -> Tensor:
        """z of a step's volumes, ``(B, latent)``."""
        return dealt(lambda volumes: self.latent(volumes, self.batches_seen, purpose), size)

    def epsilon(self, size: int, each: int = 1) -> Tensor:
        """Where between real and generated volumes the penalty is taken, ``each`` times: ``(each * B,)`` in [0, 1]."""
        generator = self.noise(self.batches_seen, EPSILON)
        return dealt(lambda volumes: torch.rand(volumes, each, generator=generator), size).T.flatten().to(self.device)

    def critic_losses(self, real: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """``critic_loss``, which a critic step minimises, and its parts, for ``real (B, 1, D, H, W)``.

        Generated volumes show the same persons as the real ones.
        """
        with torch.no_grad():
            fake = self.detector.generator(self.codes(len(real), CRITIC), *person).to(real.dtype)
        return self.critic_loss(real, fake, self.epsilon(len(real)), *person)

    def generator_losses(self, real: Tensor, *person: Tensor) -> dict[str, Tensor]:
        """``generator_loss``, which a generator step minimises, and its parts; here ``real`` only counts."""
        return {"generator_loss": self.generator_loss(self.codes(len(real), GENERATOR), *person)}

    def critic_step(self, real: Tensor, optimizer: Any, *person: Tensor) -> None:
        """Minimise eq. 2."""
        self.minimise(self.critic_losses, "critic_loss", optimizer, real, *person)

    def generator_step(self, real: Tensor, optimizer: Any, *person: Tensor) -> None:
        """Minimise eq. 3."""
        self.minimise(self.generator_losses, "generator_loss", optimizer, real, *person)

    def minimise(
        self, losses: Callable[..., dict[str, Tensor]], total: str, optimizer: Any, real: Tensor, *person: Tensor
    ) -> None:
        """A step on one of ``losses``, all of which are logged."""
        self.toggle_optimizer(optimizer)
        values = losses(real, *person)
        optimizer.zero_grad()
        self.manual_backward(values[total])
        optimizer.step()
        self.untoggle_optimizer(optimizer)
        for name, value in values.items():
            shown = name == "generator_loss"
            self.log(f"{self.name}/{name}", value.detach(), batch_size=len(real), prog_bar=shown)

    def validation_step(self, batch: Batch, batch_idx: int) -> Any:
        """The critic's Wasserstein estimate on healthy validation scans: a growing gap to training is overfitting."""
        scans, (rank, world) = len(batch["image"]), data_of(self.trainer).place()
        real, person = self.detector.shown(batch["image"]), self.detector.person(batch)
        z = self.latent(world * data_of(self.trainer).batch, batch_idx, SAMPLES)
        fake = self.detector.generator(z[rank::world][:scans], *person)  # as ``share`` deals validation scans
        of_real, of_fake = (self.detector.critic(v, *person).float().mean() for v in (real, fake))
        estimate = of_real - of_fake
        self.log_mean("val_wasserstein", estimate, scans)

    def health(self, data: HeadCTDataModule) -> dict[str, float]:
        train, validation = (self.one_of_each(data.volumes(split)) for split in ("train", "validation"))
        if self.alikeness_of_real is None:
            self.alikeness_of_real = alikeness(validation[:COUNT])
        return self.sample_health(train, validation, self.alikeness_of_real)

    def one_of_each(self, volumes: Tensor) -> Tensor:
        """Of what the networks see of volumes one each, the same after every validation."""
        seen = self.shown(volumes, 0)
        return seen[:: len(seen) // len(volumes)]

    @torch.no_grad()
    def sample_health(self, train: Tensor, validation: Tensor, of_real: float) -> dict[str, float]:
        """Numbers of how samples compare with real heads.

        ``sameness``: MS-SSIM among samples minus that among real heads. ``distance``: MMD of samples and real heads in
        units of the real heads' variance. ``copying``: how near samples come to training heads, over how near other
        healthy heads come. ``overfitting``: the critic's mean for training heads minus that for validation heads, over
        the gap between training heads and samples. Networks that are told age and sex are told nothing here.

        Args:
            train, validation: healthy volumes ``(N, 1, D, H, W)``, or slices of them.
            of_real: mean MS-SSIM among real heads.
        """
        samples = self.detector.generator(self.latent(COUNT, 0, SAMPLES)).float()
        count = min(len(samples), len(validation), len(train))
        real = validation[:count].to(samples.device)
        flat, generated = real.flatten(1), samples[:count].flatten(1)
        if count < 2:
            return {}  # one head has no spread to compare with
        distance = MMDMetric()(flat, generated) / flat.var(0).sum()
        of_train, of_validation, of_samples = (
            float(self.detector.critic(v.to(samples.device)).float().mean()) for v in (train[:count], real, samples)
        )
        near, usual = (nearest(v.cpu(), train[:NEIGHBOURS]).median() for v in (samples, real))
        return {
            "sameness": alikeness(samples) - of_real,
            "distance": float(distance.clamp_min(0)),
            "copying": float(near / usual),
            "overfitting": (of_train - of_validation) / max(abs(of_train - of_samples), 1e-6),
        }

    def pictures(self, batch: Batch) -> dict[str, list[list[Tensor]]]:
        z = self.latent(len(batch["image"]), 0, SAMPLES)
        samples = self.detector.generator(z, *self.detector.person(batch))
        return {"samples": [[volume[0]] for volume in samples]}


def alikeness(volumes: Tensor) -> float:
    """Mean MS-SSIM over pairs of volumes ``(N, 1, D, H, W)``, or of slices, in [-1, 1]."""
    metric = MultiScaleSSIMMetric(volumes.ndim - 2, data_range=2.0, kernel_size=KERNEL, weights=SCALES)
    pairs = list(combinations(range(len(volumes)), 2))
    if not pairs:
        return 0.0
    first, second = (volumes[[pair[side] for pair in pairs]] for side in (0, 1))
    return float(torch.as_tensor(metric(first, second)).nanmean())


def nearest(volumes: Tensor, training: Tensor) -> Tensor:
    """Distance of each volume to the nearest training volume, ``(N,)``."""
    return torch.cdist(volumes.flatten(1), training.flatten(1)).amin(1)
