"""Seconds a step of phase 1 by how the penalty is taken: ``python -m experiments.speed.penalty --json FILE``.

The ways take turns, block by block of steps, in one process; a way's figure is the median over its steps. A lazy step
costs more or less by turns, so its figure is the mean over whole rounds of ``penalty_every`` steps.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from experiments.speed.train import InTurn, config_of, fit, phase_of

WAYS = ("exact", "lazy", "approximate")
ROUNDS, WARM, COUNT = 3, 4, 8  # blocks of each way; steps of a block before the clock counts, and counted


def seconds(model: str, way: str, precision: str, resolution: int) -> list[float]:
    """Of the counted steps of a block."""
    more = (f"preprocessing.resolution={resolution}", f"trainer.precision={precision}")
    config = config_of("gan", model, *more, f"phase.module.penalty={way}")
    in_turn = InTurn(None)
    fit(phase_of(config), config, WARM + COUNT, in_turn)
    return in_turn.seconds["ours"][WARM:]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["compact@8", "paper@4"], help="a model and its batch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    table: dict[str, dict[str, float]] = {}
    for model in asked.models:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way in WAYS:
                found[way] += seconds(model, way, asked.precision, asked.resolution)
        table[model] = {way: round(float((np.mean if way == "lazy" else np.median)(found[way])), 5) for way in WAYS}
        exact = table[model]["exact"]
        print(model, {way: f"{s:.4f} s, {s / exact:.2f}" for way, s in table[model].items()}, flush=True)
        asked.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
