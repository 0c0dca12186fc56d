"""Who races: each method's phases with the share of the time that each gets, and how often it is trained."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from anomaly3d.arguments import read_study

HERE = Path(__file__).parent
LEARNED_FROM = HERE.parent / "scores" / "bench.yaml"
SEED = "dataset.seed=22"  # of the cohort that all learn from
CHECKS = 8  # validations in a phase
GAN = {"gan": 0.6, "encoder": 0.25, "finetune": 0.15}


@dataclass(frozen=True)
class Method:
    """``phases``: share of the time by phase; ``seeds``: how many trainings."""

    phases: dict[str, float] = field(default_factory=lambda: {"fit": 1.0})
    seeds: int = 1


METHODS = {
    "fanogan": Method(GAN, 3),
    "fanogan_2d": Method(GAN, 3),
    "alpha_fanogan": Method({"alpha_gan": 0.6, "encoder": 0.25, "finetune": 0.15}),
    "aeu": Method(),
    "denoising": Method(seeds=3),
    "ensemble": Method(),
    "masked": Method(),
    "diffusion": Method(),
    "gmvae": Method(),
    "vae": Method(),
    "autoencoder": Method(),
    "bayesian_autoencoder": Method(),
    "anovaegan": Method({"vaegan": 1.0}),
    "anogan": Method({"gan": 1.0}),
}


def cohort() -> list[str]:
    """What is typed to learn from the race's cohort; steps are the race's own."""
    return [*(text for text in read_study("train", LEARNED_FROM) if "phases." not in text), SEED, "dataset.twins=false"]


def steps_in(minutes: float, detector: str) -> dict[str, int]:
    """Steps of each phase that take so many minutes on the machine of ``cost.json``, a multiple of ``CHECKS``."""
    cost, shares = json.loads((HERE / "cost.json").read_text())[detector], METHODS[detector].phases
    seconds = {phase: 60 * minutes * share / cost[phase]["seconds_a_step"] for phase, share in shares.items()}
    return {phase: max(round(count / CHECKS), 1) * CHECKS for phase, count in seconds.items()}


def training(detector: str, seed: int, minutes: float) -> list[str]:
    """What is typed to train a method for its time."""
    steps = steps_in(minutes, detector)
    sizes = [
        f"++phases.{p}.{key}={n // by}"
        for p, n in steps.items()
        for key, by in (("steps", 1), ("steps_per_epoch", CHECKS))
    ]
    return [*cohort(), f"detector={detector}", f"seed={seed}", f"run=race-{detector}-{seed}", *sizes]
