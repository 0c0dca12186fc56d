"""Train and evaluate side by side on one GPU, also between calls: ``python -m experiments.gpu.jobs --at-once 14``.

Jobs are begun in the order below, most wanted first; logs, ``jobs.txt`` and ``NAME.trained`` are in ``runs/jobs``.
Test scans may come later than training scans: an evaluation waits for the file ``runs/jobs/test.ready``.
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from experiments.comparison.methods import cohort, training

PLACE = Path("runs") / "jobs"
PAPER = {"gan": (2500, 500), "encoder": (1000, 250), "finetune": (500, 125)}  # steps, and between two validations


@dataclass
class Job:
    """What is typed to train a run, and whether it is evaluated here; a race's run is light enough to be taken home."""

    run: str
    train: list[str]
    evaluated: bool = False
    running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, command: str, words: list[str]) -> None:
        """Begin a command."""
        with (PLACE / f"{self.run}.log").open("ab") as log:
            self.running = subprocess.Popen([sys.executable, "-m", command, *words], stdout=log, stderr=log)
        note(f"{self.run}: {command} begins")

    def ended(self) -> bool:
        """Whether what was begun has ended well; of what failed nothing more comes."""
        if self.running is None or self.running.poll() is None:
            return False
        code, self.running = self.running.returncode, None
        note(f"{self.run}: exit code {code}")
        return code == 0


def paper() -> Job:
    """The paper's networks, in batches of 16."""
    sizes = [
        word
        for phase, (steps, between) in PAPER.items()
        for word in (f"++phases.{phase}.steps={steps}", f"++phases.{phase}.steps_per_epoch={between}")
    ]
    return Job("paper-1", [*cohort(), "model=paper", "seed=1", "run=paper-1", "++phase.batch=16", *sizes], True)


def raced(method: str, seed: int) -> Job:
    """A training of the race."""
    return Job(f"race-{method}-{seed}", training(method, seed, 20))


def with_penalty(way: str, seed: int) -> Job:
    """The race's f-AnoGAN with another penalty in phase 1."""
    run = f"race-fanogan-{seed}" if way == "exact" else f"penalty-{way}-{seed}"
    words = [word for word in training("fanogan", seed, 20) if not word.startswith("run=")]
    return Job(run, [*words, f"run={run}", f"++phases.gan.module.penalty={way}"], True)


def jobs() -> list[Job]:
    """Most wanted first."""
    ways = [with_penalty(way, seed) for seed in (1, 2, 3) for way in ("lazy", "approximate")]
    exact = [with_penalty("exact", seed) for seed in (2, 3, 1)]
    slices = [raced("fanogan_2d", seed) for seed in (2, 3)]
    others = [raced(method, seed) for seed in (2, 3) for method in ("masked", "gmvae", "denoising")]
    return [paper(), *slices, *exact, *ways, *others]


def note(text: str) -> None:
    """Write down what happens, and when."""
    with (PLACE / "jobs.txt").open("a") as file:
        print(f"{time.time() - float((PLACE / 'began').read_text()):.0f} s: {text}", file=file)


def main() -> None:
    """Until nothing is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, default=14)
    at_once = parser.parse_args().at_once
    PLACE.mkdir(parents=True, exist_ok=True)
    (PLACE / "began").write_text(str(time.time()))
    busy: list[Job] = []
    waiting: list[Job] = []
    judged: list[Job] = []
    left = jobs()
    while busy or waiting or judged or left:
        for job in [job for job in busy if job.ended()]:
            (PLACE / f"{job.run}.trained").touch()
            waiting += [job] if job.evaluated else []
        for job in judged:
            job.ended()
        busy, judged = ([j for j in those if j.running] for those in (busy, judged))
        while left and len(busy) + len(judged) < at_once:
            busy.append(left.pop(0))
            busy[-1].start("anomaly3d.train", busy[-1].train)
        while waiting and (PLACE / "test.ready").exists():
            judged.append(waiting.pop(0))
            judged[-1].start("anomaly3d.evaluate", [f"run={judged[-1].run}", "logger=none", "images=0", "controls=[]"])
        time.sleep(1)
    note("all done")


if __name__ == "__main__":
    main()
