"""Train every method of the race, several side by side: ``python -m experiments.comparison.race``.

Each gets the steps that take ``--minutes`` on the machine of ``cost.json``, so that another machine may train them, and
in any order. What is finished is skipped and what was stopped goes on; logs are in ``runs/race/``.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from anomaly3d.system.progress import say
from experiments.comparison.methods import METHODS, training

PLACE = Path("runs") / "race"


def entrants(names: Iterable[str], most: int) -> list[tuple[str, int]]:
    """Methods and seeds, every first seed before any second."""
    return [(name, seed) for seed in range(1, most + 1) for name in names if seed <= METHODS[name].seeds]


def start(detector: str, seed: int, minutes: float, more: list[str]) -> subprocess.Popen[bytes]:
    """Begin a training, or go on with it."""
    with (PLACE / f"{detector}-{seed}.log").open("ab") as log:
        command = [sys.executable, "-m", "anomaly3d.train", *training(detector, seed, minutes), *more]
        return subprocess.Popen(command, stdout=log, stderr=log)


def main() -> int:
    """Train; the number of those that failed or were stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which all are stopped")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3, help="at most so many of each")
    parser.add_argument("more", nargs="*", help="what else is typed for each, after --")
    asked = parser.parse_args()
    PLACE.mkdir(parents=True, exist_ok=True)
    began, waiting, left = time.monotonic(), entrants(asked.methods, asked.seeds), 0
    running: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
    while waiting or running:
        for (name, seed), process in list(running.items()):
            if process.poll() is not None:
                del running[name, seed]
                left += process.returncode != 0
                say(f"{time.monotonic() - began:.0f} s: {name}-{seed}: exit code {process.returncode}")
        while waiting and len(running) < asked.at_once:
            name, seed = waiting.pop(0)
            running[name, seed] = start(name, seed, asked.minutes, asked.more)
            say(f"{time.monotonic() - began:.0f} s: {name}-{seed} begins")
        if time.monotonic() - began > asked.limit:
            for process in running.values():
                process.send_signal(signal.SIGINT)
            for process in running.values():
                process.wait()
            return left + len(waiting) + len(running)
        time.sleep(0.5)
    return left


if __name__ == "__main__":
    sys.exit(main())
