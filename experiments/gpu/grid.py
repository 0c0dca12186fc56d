"""Volumes a second of a GPU by phase, batch and resolution, then with one idea applied each; all in one process.

``python -m experiments.gpu.grid --json grid.json`` runs it.
"""

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly3d.phases.gan import GANPhase
from experiments.speed.train import (
    PHASES,
    CountFlops,
    InTurn,
    ProfiledStep,
    config_of,
    fit,
    make_plain,
    matrix_rate,
    noise_of,
    phase_of,
    volumes,
)
from experiments.speed.variants import applied, compiled

CELLS = (  # model, batch, resolution; what matters most comes first
    ("paper", 16, 64),
    ("compact", 16, 64),
    ("paper", 4, 64),
    ("paper", 64, 64),
    ("compact", 64, 64),
    ("paper", 8, 96),
    ("paper", 2, 128),
)
IN_TURN = CELLS[:2]  # also the plain algorithm
IDEAS = ("as_is", "other_layout", "torch_derivatives", "cudnn_benchmark", "float32", "tf32", "compile", "cuda_graphs")
STEPS, WARM = 12, 4


def device() -> torch.device:
    """The GPU; the CPU where there is none, to try this file."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measure(name: str, model: str, batch: int, resolution: int, idea: str, plain: bool, steps: int) -> dict[str, Any]:
    """One cell: seconds a step and volumes a second of ours, seconds of plain where wanted, and MB at most of ours."""
    precision = ["trainer.precision=32-true"] * (idea in ("float32", "tf32"))
    config = config_of(name, f"{model}@{batch}", f"preprocessing.resolution={resolution}", *precision)
    phase = phase_of(config)
    if idea in ("compile", "cuda_graphs"):
        compiled(phase, name, idea)
    in_turn = InTurn(make_plain(phase, phase.detector) if plain else None)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    fit(phase, config, steps, in_turn)
    ours = float(np.median(in_turn.seconds["ours"][WARM:]))
    found = {"step_s": round(ours, 5), "volumes_a_second": round(batch / ours, 1)}
    if torch.cuda.is_available() and not plain:
        found["mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    if plain:
        found["plain_ratio"] = round(float(np.median(in_turn.seconds["plain"][WARM:])) / ours, 2)
    return found


def slowest(name: str, model: str, batch: int, resolution: int, precision: str, count: int) -> str:
    """A table of the ``count`` slowest operations of a step."""
    config = config_of(
        name, f"{model}@{batch}", f"preprocessing.resolution={resolution}", f"trainer.precision={precision}"
    )
    step = ProfiledStep(3, record_shapes=True)
    fit(phase_of(config), config, 4, step)
    by = f"self_{device().type}_time_total"
    return step.profile.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=count)


def asked(name: str, model: str, resolution: int) -> float:
    """Multiplications and additions of a plain step, a volume."""
    phase = phase_of(config_of(name, f"{model}@2", f"preprocessing.resolution={resolution}")).to(device())
    plain = make_plain(phase, phase.detector)
    plain.detector.to(device())
    noise = noise_of(phase, 0, 2) if isinstance(phase, GANPhase) else {}
    with CountFlops() as counter:
        plain.step(volumes(2, resolution).to(device()), noise)
    return counter.total / 2


def tried(where: tuple[str, ...], *cell: Any) -> dict[str, Any]:
    """A cell, or what it failed with; printed."""
    try:
        found = measure(*cell)
    except Exception as error:
        found = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    gc.collect()
    torch.cuda.empty_cache()
    print(*where, found, flush=True)
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which nothing more is begun")
    parser.add_argument("--cells", type=int, default=len(CELLS))
    parser.add_argument("--ideas", nargs="*", default=list(IDEAS))
    parser.add_argument("--count", type=int, default=STEPS, help="steps of a cell")
    parser.add_argument("--profile", type=int, default=0, help="before all: the operations that take most of a step")
    arguments = parser.parse_args()
    for model, batch, resolution in IN_TURN[::-1] if arguments.profile else ():
        for precision in ("32-true", "bf16-mixed"):
            found = slowest("gan", model, batch, resolution, precision, arguments.profile)
            print(f"phase1 {model} {batch} {resolution} {precision}", found, sep="\n", flush=True)
    begun = time.perf_counter()
    table: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
        "matrix_rate_bf16": matrix_rate(torch.bfloat16, device(), 8192 if torch.cuda.is_available() else 512),
        "cells": {},
        "ideas": {},
    }

    def keep(kind: str, phase: str, key: str, found: dict[str, Any]) -> None:
        table[kind].setdefault(phase, {})[key] = found
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")

    for model, batch, resolution in CELLS[: arguments.cells]:
        for phase, name in PHASES.items():
            if time.perf_counter() - begun > arguments.limit:
                return
            key, cell = f"{model} {batch} {resolution}", (name, model, batch, resolution)
            found = tried((phase, key), *cell, "as_is", False, arguments.count)
            if (model, batch, resolution) in IN_TURN and "failed" not in found:
                found |= {
                    "plain": tried((phase, key, "plain"), *cell, "as_is", True, arguments.count).get("plain_ratio")
                }
                gflop = asked(name, model, resolution) / 1e9
                found |= {"gflop": round(gflop, 2)}
                found |= {
                    "of_matrix_rate": round(gflop * 1e9 * found["volumes_a_second"] / table["matrix_rate_bf16"], 4)
                }
            keep("cells", phase, key, found)
    model, batch, resolution = CELLS[0]
    for idea in arguments.ideas:
        for phase, name in PHASES.items():
            if time.perf_counter() - begun > arguments.limit:
                return
            with applied(idea):
                found = tried((phase, idea), name, model, batch, resolution, idea, False, arguments.count)
            keep("ideas", phase, idea, found)


if __name__ == "__main__":
    main()
