"""SIGKILL training at random moments, let it finish, and compare all that it left with an undisturbed run, bit for bit.

``make drill`` or ``python -m experiments.reliability.kill KILLS`` writes ``kills.json``.
"""

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from anomaly3d.cli import CONF, plain
from anomaly3d.cohorts.phantom.cohort import PARTS
from anomaly3d.prepare import build_study
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.system.progress import Bar, say
from anomaly3d.training.job import Job
from anomaly3d.training.run import train_phase

HERE = Path(__file__).parent
WORK = Path("runs/experiments/reliability").absolute()
KILLS = 100
DATED = ("lineage.json", "config.yaml", "overrides.yaml")  # they hold the date and the run's own path
PHASES = {"gan": "fanogan", "encoder": "fanogan", "finetune": "fanogan", "fit": "supervised"}
COUNTS = {"train": 6, "validation": 3, "labelled_normal": 3, "labelled_lesion": 3}
COHORT = [
    "dataset.counts={" + ", ".join(f"{part}: {COUNTS.get(part, 0)}" for part in PARTS) + "}",
    "dataset.name=drill",
    "dataset.matrix=64",
    "dataset.slices=24",
    "preprocessing.resolution=32",
    "preprocessing.registration_enough=0",
]
SMALL = [
    *COHORT,
    "model.channels=4",
    "model.latent=16",
    "++phase.batch=2",
    "++phase.steps=12",
    "++phase.steps_per_epoch=3",
    "trainer.precision=32-true",
    "logger=none",
]
Kill = dict[str, Any]  # phase, seconds after its start, and validations before it

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["anomaly3d.training.run"])


def job_of(phase: str, run: str, prepared: PreparedCohort, *overrides: str) -> Job:
    """A phase to train on a cohort that has been prepared."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = plain(compose("train", [f"+phase={phase}", f"detector={PHASES[phase]}", *overrides]))
    return Job(prepared, config["preprocessing"]["resolution"], True, WORK / run, config)


def quietly(job: Job) -> None:
    """Train a phase in a process of its own."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    train_phase(job)


def begin(job: Job) -> Any:
    """Start ``quietly``; torch is there already, so that a start takes no time."""
    process = processes.Process(target=quietly, args=(job,))
    process.start()
    return process


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """All values of nested containers, with their dotted names."""
    if isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def contents(path: Path, folder: Path) -> dict[str, Any]:
    """Another file's bytes; of a checkpoint its values by name, without the folder's own path."""
    if path.suffix != ".ckpt":
        return {"bytes": path.read_bytes()}
    values = leaves(torch.load(path, map_location="cpu", weights_only=True))
    return {
        name.replace(str(folder), ""): (v.dtype, v.shape, v.numpy().tobytes())
        if isinstance(v, torch.Tensor)
        else repr(v).replace(str(folder), "")
        for name, v in values
        if not name.endswith(".current_score")  # which Lightning stores, does not restore, and decides nothing by
    }


def differences(calm: Path, killed: Path) -> list[str]:
    """What differs between two folders of a phase: files, and names of values in checkpoints."""
    names = {str(path.relative_to(folder)) for folder in (calm, killed) for path in folder.rglob("*") if path.is_file()}
    found = []
    for name in sorted(n for n in names if Path(n).name not in DATED):
        if lacking := [folder for folder in (calm, killed) if not (folder / name).exists()]:
            found.append(f"{name} is not in {lacking[0]}")
            continue
        a, b = (contents(folder / name, folder) for folder in (calm, killed))
        found += [f"{name}: {key}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    return found


def killed_and_finished(phase: str, prepared: PreparedCohort, moments: list[float]) -> tuple[list[Kill], list[str]]:
    """Kill a phase so many seconds after each start, and let it finish: the kills, and what came out other."""
    job = job_of(phase, "killed", prepared, *SMALL)
    place = job.folder.path.relative_to(WORK / "killed")
    shutil.rmtree(WORK / "killed", ignore_errors=True)
    shutil.copytree(WORK / "calm", WORK / "killed")
    shutil.rmtree(WORK / "killed" / place)
    kills: list[Kill] = []
    for moment in moments:
        process = begin(job)
        process.join(moment)
        if process.is_alive():
            process.kill()
            process.join()
            table = WORK / "killed" / place / "training.csv"
            validations = len(table.read_text().splitlines()) - 1 if table.exists() else 0
            kills.append({"phase": phase, "seconds": round(moment, 2), "validations": validations})
    process = begin(job)
    process.join()
    if process.exitcode:
        return kills, [f"exit code {process.exitcode}"]
    return kills, differences(WORK / "calm" / place, WORK / "killed" / place)


def main(wanted: int = KILLS) -> None:
    """Kill, finish, compare, over all phases in turn."""
    rng = np.random.default_rng(0)
    shutil.rmtree(WORK / "calm", ignore_errors=True)
    with initialize_config_dir(CONF, version_base="1.3"):
        prepared = build_study(compose("prepare", [f"data_dir={WORK / 'data'}", "workers=2", *COHORT])).prepare()
    idle = processes.Process(target=time.sleep, args=(0,))  # the first start imports torch
    idle.start()
    idle.join()
    seconds = {}
    for phase in PHASES:
        job = job_of(phase, "calm", prepared, *SMALL)
        started = time.monotonic()
        process = begin(job)
        process.join()
        assert process.exitcode == 0, phase
        seconds[phase] = time.monotonic() - started
    kills: list[Kill] = []
    table: dict[str, Any] = {phase: {"kills": 0, "finished": 0, "differences": []} for phase in PHASES}
    bar = Bar("kills", wanted)
    for phase in cycle(PHASES):
        moments = rng.uniform(0, 1, rng.integers(1, 4)) * seconds[phase]
        new, different = killed_and_finished(phase, prepared, moments.tolist()[: wanted - len(kills)])
        kills += new
        row = table[phase]
        table[phase] = {
            "kills": row["kills"] + len(new),
            "finished": row["finished"] + 1,
            "differences": row["differences"] + different,
        }
        bar.show(len(kills))
        if len(kills) == wanted:
            break
    result = {"phases": table, "kills": kills}
    (HERE / "kills.json").write_text(json.dumps(result, indent=1) + "\n")
    say(f"{'phase':10}{'kills':>8}{'finished':>10}{'differences':>13}")
    for phase, row in table.items():
        say(f"{phase:10}{row['kills']:8}{row['finished']:10}{len(row['differences']):13}")
    assert not any(row["differences"] for row in table.values()), "not the same: see kills.json"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
