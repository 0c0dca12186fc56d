"""SIGKILL ``prepare`` at random moments, let it finish, and compare every byte with an undisturbed run.

``python -m experiments.preprocessing.kill`` writes ``kill.json``.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from anomaly3d.cohorts.phantom.cohort import PARTS

HERE = Path(__file__).parent
WORK = Path("runs/experiments/preprocessing/kill")
KILLS = 20
COHORT = [
    "dataset.counts={" + ", ".join(f"{part}: {12 if part == 'train' else 0}" for part in PARTS) + "}",
    "dataset.seed=77",
    "workers=2",
]


def start(data: Path) -> subprocess.Popen:
    """``prepare`` into a data folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "anomaly3d.prepare", f"data_dir={data}", *COHORT], stdout=subprocess.DEVNULL
    )


def digests(data: Path) -> dict[str, str]:
    """SHA-256 of every prepared file by its place, without the outcomes: they hold the scans' times of writing."""
    (folder,) = data.glob("phantom-*/*")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent.name != "outcomes")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def main() -> None:
    """Kill, finish, compare."""
    rng = np.random.default_rng(0)
    shutil.rmtree(WORK, ignore_errors=True)
    started = time.monotonic()
    assert start(WORK / "calm").wait() == 0
    seconds = time.monotonic() - started
    expected = digests(WORK / "calm")
    shutil.copytree(WORK / "calm" / "raw", WORK / "killed" / "raw")
    kills, rounds = [], 0
    while True:
        process = start(WORK / "killed")
        moment = float(rng.uniform(0.1, 0.8) * seconds)
        try:
            process.wait(moment if len(kills) < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills.append(round(moment, 1))
            continue
        assert process.returncode == 0
        assert digests(WORK / "killed") == expected, "other bytes"
        rounds += 1
        if len(kills) == KILLS:
            break
        for folder in (WORK / "killed").glob("phantom-*"):
            shutil.rmtree(folder)
    result = {"kills": kills, "times_finished": rounds, "files": len(expected), "same_bytes": True}
    (HERE / "kill.json").write_text(json.dumps(result) + "\n")
    print(result)


if __name__ == "__main__":
    main()
