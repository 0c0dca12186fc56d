"""Who races: each method's detector, its phases, and the share of the time that each phase gets."""

from dataclasses import dataclass, field
from pathlib import Path

STUDY = Path(__file__).parent / "race.yaml"


@dataclass(frozen=True)
class Method:
    """``phases``: share of the time by phase; ``seeds``: how many trainings."""

    phases: dict[str, float] = field(default_factory=lambda: {"fit": 1.0})
    seeds: int = 1


GAN = {"gan": 0.6, "encoder": 0.25, "finetune": 0.15}
METHODS = {
    "fanogan": Method(GAN, 3),
    "fanogan_2d": Method(GAN, 3),
    "alpha_fanogan": Method({"alpha_gan": 0.6, "encoder": 0.25, "finetune": 0.15}),
    "anogan": Method({"gan": 1.0}),
    "anovaegan": Method({"vaegan": 1.0}),
    "autoencoder": Method(),
    "vae": Method(),
    "gmvae": Method(),
    "bayesian_autoencoder": Method(),
    "aeu": Method(),
    "denoising": Method(),
    "masked": Method(),
    "diffusion": Method(),
    "supervised": Method(),
}


def overrides(detector: str, seed: int) -> list[str]:
    """What is typed to train a method with a seed."""
    return [f"detector={detector}", f"seed={seed}"]
