"""How long a user waits: for help, and for a command that trains one step on prepared scans.

``python -m experiments.speed.start --json out.json`` takes medians over processes; the cohort is made first where it is
missing, under ``runs/experiments/speed``.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from anomaly3d.cohorts.phantom.cohort import PARTS

WORK = Path("runs/experiments/speed")
COUNTS = {"train": 8, "validation": 2}
ONE_STEP = [
    "+phase=gan",
    "run=first-step",
    f"data_dir={WORK}/data",
    f"runs_dir={WORK}/runs",
    "logger=none",
    "dataset.matrix=64",
    "++phase.steps=1",
    "++phase.steps_per_epoch=1",
    "dataset.counts={" + ", ".join(f"{part}: {COUNTS.get(part, 0)}" for part in PARTS) + "}",
]


def seconds(*arguments: str, repeats: int = 5) -> float:
    """Median wall time of ``python -m ARGUMENTS``."""
    found = []
    for _ in range(repeats):
        shutil.rmtree(WORK / "runs", ignore_errors=True)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)
        found.append(time.perf_counter() - started)
    return round(float(np.median(found)), 2)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds("anomaly3d.train", *ONE_STEP, repeats=1)  # makes and prepares the cohort
    table = {
        "help_s": seconds("anomaly3d.train", "--help"),
        "one_step_s": seconds("anomaly3d.train", *ONE_STEP, repeats=3),
    }
    print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(table) + "\n")


if __name__ == "__main__":
    main()
