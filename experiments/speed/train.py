"""Seconds a volume of the three phases: the product under Lightning against the plain algorithm, step by step in turn.

``python -m experiments.speed.train --json out.json`` runs both in one process, a step of ours, a plain step, and takes
medians; peak memory comes from a process each. It first checks that both compute the same.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import flop_registry

from anomaly3d import cli
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.phases.base import Phase
from anomaly3d.phases.gan import CRITIC, EPSILON, GENERATOR, GANPhase
from anomaly3d.prepare import build_study
from anomaly3d.system.memory import keep_freed_memory, release_memory
from anomaly3d.system.quiet import hush
from anomaly3d.system.trainer import describe_trainer, make_trainer, resolve_trainer
from anomaly3d.training.job import Job
from anomaly3d.training.run import build_phase
from experiments.speed.plain import PlainEncoder, PlainGAN, critic_loss, encoder_loss, generator_loss, plain_copy

PHASES = {"phase1": "gan", "phase2": "encoder", "phase3": "finetune"}
BATCH = {"paper": 4, "compact": 8}
WARM = 2  # steps before the clock counts
ALONE = 6  # steps of a process that trains one side only


def config_of(phase: str, model: str, *more: str) -> DictConfig:
    """What a user's command composes; ``model`` may name a batch: ``paper@16``."""
    name, _, batch = model.partition("@")
    with initialize_config_dir(cli.CONF, version_base="1.3"):
        return compose("train", [f"+phase={phase}", f"model={name}", f"++phase.batch={batch or BATCH[name]}", *more])


def phase_of(config: DictConfig) -> Phase:
    """The phase as the product builds it, with networks that have learned nothing."""
    study = build_study(config)
    job = Job(study, study.preprocessor.resolution, study.cohort.synthetic, Path(config.runs_dir), cli.plain(config))
    return build_phase(job, None)


def volumes(count: int, resolution: int = 64) -> Tensor:
    """Random volumes in [-1, 1] with the correlation of a smoothed image, ``(N, 1, D, H, W)``."""
    noise = torch.randn(count, 1, *(resolution,) * 3, generator=torch.Generator().manual_seed(0))
    return torch.tanh(3 * torch.nn.functional.avg_pool3d(noise, 5, 1, 2))


def loader(batch: int, steps: int, resolution: int = 64) -> DataLoader:
    """Batches as the data module gives them."""
    x = volumes(batch, resolution)
    return DataLoader([{"image": x[i % batch], "scan_id": str(i)} for i in range(batch * steps)], batch_size=batch)


def make_plain(phase: Phase, detector: FAnoGAN) -> PlainGAN | PlainEncoder:
    """The plain algorithm of a phase, on a copy of the phase's weights."""
    if isinstance(phase, GANPhase):
        return PlainGAN(plain_copy(detector))
    trained, rate = tuple(phase.trained), phase.optimizer["lr"]  # type: ignore[attr-defined]
    return PlainEncoder(plain_copy(detector), trained, rate)


def noise_of(phase: Phase, step: int, batch: int) -> dict[str, Tensor]:
    """The random numbers that the product draws in its ``step``-th step of phase 1."""
    return {
        "critic": phase.latent(batch, step, CRITIC),
        "epsilon": torch.rand(batch, generator=phase.noise(step, EPSILON)).to(phase.device),
        "generator": phase.latent(batch, step + 1, GENERATOR),
    }


def now(device: torch.device) -> float:
    """Seconds, after the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class InTurn(L.Callback):
    """After each step of the product, a plain step on the same batch; both are timed."""

    def __init__(self, plain: PlainGAN | PlainEncoder | None) -> None:
        self.plain = plain
        self.seconds: dict[str, list[float]] = {"ours": [], "plain": []}

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.started = now(module.device)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        middle = now(module.device)
        self.seconds["ours"].append(middle - self.started)
        if self.plain:
            if batch_idx == 0:
                self.plain.detector.to(module.device)
            image = batch["image"]
            noise = noise_of(module, batch_idx, len(image)) if isinstance(module, GANPhase) else {}
            with torch.autocast(image.device.type, enabled=False):
                self.plain.step(image.contiguous(), noise)
            self.seconds["plain"].append(now(module.device) - middle)


class ProfiledStep(L.Callback):
    """The profiler over the ``step``-th training step."""

    def __init__(self, step: int, **options: Any) -> None:
        self.step, self.profile = step, torch.profiler.profile(**options)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.profile.start()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.step:
            self.profile.stop()


def fit(phase: Phase, config: DictConfig, steps: int, callback: L.Callback) -> str:
    """Train for some steps as the product does; returns the line that says what was chosen."""
    hush()
    keep_freed_memory()
    options = resolve_trainer(config.trainer)
    trainer = make_trainer(options, logger=False, callbacks=[callback], max_epochs=1, enable_checkpointing=False)
    trainer.fit(phase, loader(config.phase.batch, steps, config.model.resolution))
    return describe_trainer(options, 1)


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = 2048) -> float:
    """FLOP/s of a plain matrix product: the limit."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        started = now(device)
        a @ b
        seconds.append(now(device) - started)
    return 2 * size**3 / float(np.median(seconds))


class CountFlops(TorchDispatchMode):
    """Adds up what torch's own formulas say; its FlopCounterMode does not survive a gradient inside a loss."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


def flops(phase: Phase, batch: int, resolution: int) -> int:
    """Multiplications and additions of one plain step, which is what the algorithm asks for."""
    plain = make_plain(phase, phase.detector)
    with CountFlops() as counter:
        plain.step(volumes(batch, resolution), noise_of(phase, 0, batch) if isinstance(phase, GANPhase) else {})
    return counter.total


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Between two lists of tensors taken as one vector each."""
    x, y = (torch.cat([t.detach().double().flatten() for t in side]) for side in (a, b))
    return float(x @ y / (x.norm() * y.norm()))


def check(phase_name: str, model: str) -> dict[str, Any]:
    """Losses and gradients of the product and of the plain algorithm in float32, from the same weights and noise."""
    config = config_of(phase_name, model)
    phase = phase_of(config)
    x, detector = volumes(2, config.model.resolution), phase.detector
    plain = plain_copy(detector)
    found: dict[str, Any] = {}

    def compare(name: str, ours: Tensor, theirs: Tensor, networks: tuple[str, ...]) -> None:
        gradients = []
        for loss, side in ((ours, detector), (theirs, plain)):
            parameters = [p for n in networks for p in getattr(side, n).requires_grad_(True).parameters()]
            gradients.append(torch.autograd.grad(loss, parameters, allow_unused=True))
        pairs = [(a, b) for a, b in zip(*gradients, strict=True) if a is not None]
        gap = abs(float(ours.detach()) - float(theirs.detach())) / max(1.0, abs(float(theirs.detach())))
        found[name] = {"gap": gap, "cosine": cosine([a for a, _ in pairs], [b for _, b in pairs])}
        assert gap < 1e-4, (name, gap)
        assert found[name]["cosine"] > 0.999, (name, found[name])

    for side in (detector, plain):
        side.requires_grad_(True)
    if isinstance(phase, GANPhase):
        noise = noise_of(phase, 0, 2)
        ours = phase.critic_loss(x, detector.generator(noise["critic"]).detach(), noise["epsilon"])["critic_loss"]
        compare("critic", ours, critic_loss(plain, x, noise["critic"], noise["epsilon"]), ("critic",))
        compare(
            "generator",
            phase.generator_loss(noise["generator"]),
            generator_loss(plain, noise["generator"]),
            ("generator",),
        )
    else:
        ours = detector.distances(x, detector.reconstruct(x))["total"].mean()
        compare(phase_name, ours, encoder_loss(plain, x), tuple(phase.trained))  # type: ignore[attr-defined]
    return found


def drift(phase_name: str, model: str, steps: int) -> dict[str, Any]:
    """How far the product's weights and the plain ones are apart after ``steps`` steps in turn.

    In the product's own precision, and in float32: what differs there too is the training's own chaos (Adam turns the
    sign of a gradient near zero into a whole step), not the precision.
    """
    return {"steps": steps} | {p: drift_in(p, phase_name, model, steps) for p in ("auto", "32-true")}


def drift_in(precision: str, phase_name: str, model: str, steps: int) -> dict[str, Any]:
    """One precision's part of ``drift``."""
    release_memory()
    config = config_of(phase_name, model, f"trainer.precision={precision}")
    phase = phase_of(config)
    in_turn = InTurn(make_plain(phase, phase.detector))
    fit(phase, config, steps, in_turn)
    assert in_turn.plain
    named = zip(phase.detector.named_parameters(), in_turn.plain.detector.parameters(), strict=True)
    cosines = {
        n: (cosine([a.cpu()], [b.cpu()]), a.numel()) for (n, a), b in named if a.numel() > 1 and a.abs().sum() > 0
    }
    below = {n: round(c, 4) for n, (c, _) in cosines.items() if c <= 0.99}
    return {
        "tensors": len(cosines),
        "below_0.99": below,
        "share_of_weights_below": sum(cosines[n][1] for n in below) / sum(size for _, size in cosines.values()),
    }


def peak_of_this_process() -> float:
    """MB; ``getrusage`` would give the parent's where that was larger."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1e3


def alone(side: str, phase_name: str, model: str) -> tuple[float, float]:
    """MB at most, and seconds a step, of a process that only trains one side."""
    command = [sys.executable, "-m", "experiments.speed.train", "--alone", side, phase_name, model]
    megabytes, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-2:]
    return float(megabytes), float(seconds)


def measure_alone(side: str, phase_name: str, model: str) -> None:
    """Print the peak of this process in MB (of the GPU where there is one, else of the process), and s a step.

    The plain side has the allocator as it comes, without ``keep_freed_memory``.
    """
    config = config_of(phase_name, model)
    phase = phase_of(config)
    seconds = []
    if side == "ours":
        in_turn = InTurn(None)
        fit(phase, config, ALONE, in_turn)
        seconds = in_turn.seconds["ours"]
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        plain = make_plain(phase, phase.detector)
        plain.detector.to(device)
        del phase.detector
        x = volumes(config.phase.batch, config.model.resolution).to(device)
        for _ in range(ALONE):
            started = now(device)
            z = torch.randn(config.phase.batch, config.model.latent, device=device)
            plain.step(x, {"critic": z, "generator": z, "epsilon": torch.rand(len(x), device=device)})
            seconds.append(now(device) - started)
    peak = torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else peak_of_this_process()
    print(peak, float(np.median(seconds[WARM:])))


def measure(phase_name: str, model: str, steps: int, memory: bool) -> dict[str, Any]:
    """One cell of the table."""
    config = config_of(phase_name, model)
    phase = phase_of(config)
    batch = int(config.phase.batch)
    asked = flops(copy.deepcopy(phase), batch, config.model.resolution)
    in_turn = InTurn(make_plain(phase, phase.detector))
    chosen = fit(phase, config, steps + WARM, in_turn)
    ours, plain = (float(np.median(in_turn.seconds[side][WARM:])) for side in ("ours", "plain"))
    dtype = torch.bfloat16 if "bf16" in chosen else torch.float32
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    limit = matrix_rate(dtype, device)
    result: dict[str, Any] = {
        "plain_s": round(plain / batch, 5),
        "ours_s": round(ours / batch, 5),
        "ratio": round(plain / ours, 2),
        "of_limit": round(asked / ours / limit, 3),
        "gflop": round(asked / batch / 1e9, 2),
        "limit_gflops": round(limit / 1e9, 1),
        "steps": steps,
        "chosen": chosen,
    }
    if memory:
        for side in ("plain", "ours"):
            megabytes, seconds = alone(side, phase_name, model)
            result |= {f"{side}_mb": round(megabytes), f"{side}_alone_s": round(seconds / batch, 5)}
        result["ratio_alone"] = round(result["plain_alone_s"] / result["ours_alone_s"], 2)
    return result


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--models", nargs="+", default=list(BATCH), help="paper, compact, paper@16 (a batch of 16) ...")
    parser.add_argument("--phases", nargs="+", default=list(PHASES))
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--drift", type=int, default=0, help="no timing: train both for so many steps, compare weights")
    parser.add_argument("--alone", nargs=3, metavar=("SIDE", "PHASE", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        return measure_alone(*arguments.alone)
    table: dict[str, Any] = {}
    for phase in arguments.phases:
        for model in arguments.models:
            if arguments.drift:
                entry = drift(PHASES[phase], model, arguments.drift)
            else:
                timed = measure(PHASES[phase], model, arguments.steps, not arguments.no_memory)
                entry = {"same": check(PHASES[phase], model), **timed}
            table.setdefault(phase, {})[model] = entry
            print(phase, model, {k: v for k, v in entry.items() if k != "same"}, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
