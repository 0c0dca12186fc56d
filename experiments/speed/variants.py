"""What else could make a phase faster: each idea beside the product as it is, in a process of its own.

``python -m experiments.speed.variants --json out.json`` on whatever this machine has; ``--cell`` runs one. An idea that
wins on every phase belongs into ``anomaly3d/system``.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from anomaly3d.networks import layers
from anomaly3d.networks.derivatives import CONV, TRANSPOSED
from anomaly3d.phases import base
from anomaly3d.phases.base import Phase
from anomaly3d.system.device import memory_format
from experiments.speed.train import BATCH, PHASES, WARM, InTurn, config_of, fit, phase_of

STEPS = 10
ANYWHERE = ("as_is", "torch_derivatives", "other_layout", "float32", "compile")
ON_GPU = ("tf32", "cudnn_benchmark", "cuda_graphs")


def torch_derivatives() -> None:
    """Layers on torch's own operations, which ``torch.compile`` sees through."""
    layers.halve = lambda x, kernel, bias=None: CONV[x.ndim](x, kernel, bias, stride=2, padding=1)
    layers.double = lambda x, kernel: TRANSPOSED[x.ndim](x, kernel, stride=2, padding=1)
    layers.leaky_relu = F.leaky_relu


def compiled(phase: Phase, phase_name: str, variant: str) -> None:
    """Compile what is differentiated once: never the critic of phase 1, whose gradient is part of its loss."""
    once: list[nn.Module] = [phase.detector.generator]
    if phase_name != "gan":
        once += [phase.detector.encoder, phase.detector.critic.trunk]
    for network in once:
        network.compile(mode="reduce-overhead" if variant == "cuda_graphs" else None)


@contextmanager
def applied(idea: str) -> Iterator[None]:
    """One idea, and after it the product as it is."""
    kept = {name: getattr(layers, name) for name in ("halve", "double", "leaky_relu")}
    matmul, layout = torch.get_float32_matmul_precision(), base.memory_format
    if idea in ("torch_derivatives", "compile", "cuda_graphs"):
        torch_derivatives()
    if idea == "other_layout":
        (other,) = {torch.channels_last_3d, torch.contiguous_format} - {
            memory_format(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        }
        base.memory_format = lambda *_: other
    torch.backends.cudnn.benchmark = idea == "cudnn_benchmark"
    if idea == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(layers, name, function)
        base.memory_format = layout
        torch.backends.cudnn.benchmark = False
        torch.set_float32_matmul_precision(matmul)


def cell(variant: str, phase_name: str, model: str) -> float:
    """Median seconds a volume of the product with one idea applied."""
    config = config_of(phase_name, model, *["trainer.precision=32-true"] * (variant in ("float32", "tf32")))
    phase, in_turn = phase_of(config), InTurn(None)
    with applied(variant):
        if variant in ("compile", "cuda_graphs"):
            compiled(phase, phase_name, variant)
        fit(phase, config, STEPS, in_turn)
    return float(np.median(in_turn.seconds["ours"][WARM:])) / config.phase.batch


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--models", nargs="+", default=list(BATCH))
    parser.add_argument("--phases", nargs="+", default=list(PHASES))
    parser.add_argument("--cell", nargs=3, metavar=("VARIANT", "PHASE", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        return print(cell(*arguments.cell))
    variants = ANYWHERE + (ON_GPU if torch.cuda.is_available() else ())
    table: dict[str, dict[str, dict[str, float]]] = {}
    for phase in arguments.phases:
        for model in arguments.models:
            found = table.setdefault(phase, {}).setdefault(model, {})
            for variant in variants:
                command = [sys.executable, "-m", "experiments.speed.variants", "--cell", variant, PHASES[phase], model]
                printed = subprocess.run(command, capture_output=True, text=True)
                if printed.returncode:
                    print(phase, model, variant, "failed:", printed.stderr.splitlines()[-1:])
                    continue
                found[variant] = round(float(printed.stdout.split()[-1]), 5)
            print(phase, model, found, flush=True)
            if arguments.json:
                arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
