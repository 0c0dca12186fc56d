"""Does training wait for data, does a volume cost the same in a large cohort, and what do resolution and batch cost?

``python -m experiments.speed.data --json out.json`` trains phase 1 of ``model=compact`` for some steps on prepared
cohorts of 100 to 2,000 scans, in memory and memory-mapped, in turn; then phases 1 and 3 at several resolutions and
batches, with and without gradient checkpointing, in a process each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import nibabel as nib
import numpy as np
import pandas as pd
import torch

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.scans.manifest import read_manifest, write_manifest
from anomaly3d.system.memory import keep_freed_memory
from anomaly3d.system.quiet import hush
from anomaly3d.system.trainer import make_trainer, resolve_trainer
from experiments.speed.train import (
    PHASES,
    InTurn,
    ProfiledStep,
    config_of,
    fit,
    peak_of_this_process,
    phase_of,
    volumes,
)

SIZES = (100, 500, 2000)
DIFFERENT = 20  # volumes on disk; the scans of a cohort are links to them
RESOLUTIONS, BATCHES = (32, 64, 96, 128), (1, 4, 8, 16)
CELL_STEPS = 8


def prepared_cohort(folder: Path, scans: int) -> PreparedCohort:
    """Random volumes as a cohort's: a manifest whose rows share files."""
    for number, volume in enumerate(volumes(DIFFERENT)):
        path = folder / "image" / f"{number}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            nib.save(nib.nifti1.Nifti1Image(volume[0].numpy(), np.eye(4)), path)
    rows = pd.DataFrame(
        {
            "scan_id": [f"s{i}" for i in range(scans)],
            "subject_id": [f"s{i}" for i in range(scans)],
            "cohort": "speed",
            "image": [str(folder / "image" / f"{i % DIFFERENT}.nii.gz") for i in range(scans)],
            "label": "0",
            "group": "normal",
            "split": "train",
        }
    )
    write_manifest(rows, folder / "manifest.csv")
    return PreparedCohort(folder, read_manifest(folder / "manifest.csv"), pd.DataFrame())


class Waiting(L.Callback):
    """Seconds in steps, and between them, where the next batch is waited for."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.ended = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.started = time.perf_counter()
        if self.ended:
            self.waits.append(self.started - self.ended)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.ended = time.perf_counter()
        self.steps.append(self.ended - self.started)


def train_on(scans: int, steps: int, memory_gb: float | None, folder: Path) -> dict[str, float]:
    """Phase 1 on a cohort of so many scans."""
    hush()
    keep_freed_memory()
    config = config_of("gan", "compact")
    started = time.perf_counter()
    data = HeadCTDataModule(prepared_cohort(folder, scans), config.phase.batch, steps, memory_gb=memory_gb)
    data.setup()
    data.dataset("train")
    read = time.perf_counter() - started
    waiting = Waiting()
    options = resolve_trainer(config.trainer)
    trainer = make_trainer(options, logger=False, callbacks=[waiting], max_epochs=1, enable_checkpointing=False)
    trainer.fit(phase_of(config), data.train_dataloader())
    step, wait = float(np.median(waiting.steps)), float(np.median(waiting.waits))
    return {
        "read_s": round(read, 2),
        "s_a_volume": round((step + wait) / config.phase.batch, 5),
        "waits": round(wait / (step + wait), 5),
    }


def step_memory(profile: torch.profiler.profile) -> float:
    """MB of tensors that the profiled step holds at once, beyond what is there when it starts.

    From the profiler's trace, since a process of some hundred MB of libraries hides them.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"]
    return float(max(np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])) / 1e6)


def growth_cell(phase_name: str, resolution: int, batch: int, checkpointing: bool) -> None:
    """Print seconds a volume, MB of tensors of a step, and the peak of this process in MB."""
    config = config_of(phase_name, "compact", f"model.resolution={resolution}", f"++phase.batch={batch}")
    phase = phase_of(config)
    if checkpointing:
        phase.detector.recompute_activations()
    in_turn = InTurn(None)
    fit(phase, config, CELL_STEPS, in_turn)
    seconds = float(np.median(in_turn.seconds["ours"][1:])) / batch
    process = peak_of_this_process()
    step = ProfiledStep(1, profile_memory=True)
    fit(phase, config, 2, step)
    memory = step_memory(step.profile)
    print(json.dumps({"s_a_volume": round(seconds, 4), "step_mb": round(memory), "process_mb": round(process)}))


def growth(phase_name: str, resolution: int, batch: int) -> dict[str, dict[str, float]]:
    """One cell in a process of its own, without and with gradient checkpointing."""
    cells = {}
    for name, on in (("plain", 0), ("checkpointing", 1)):
        cell = [phase_name, str(resolution), str(batch), str(on)]
        command = [sys.executable, "-W", "ignore", "-m", "experiments.speed.data", "--cell", *cell]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        cells[name] = json.loads(printed.splitlines()[-1])
    print(phase_name, resolution, batch, cells, flush=True)
    return cells


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cell", nargs=4, metavar=("PHASE", "RESOLUTION", "BATCH", "ON"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        phase, *numbers = arguments.cell
        resolution, batch, checkpointing = map(int, numbers)
        return growth_cell(phase, resolution, batch, bool(checkpointing))
    table: dict[str, Any] = {"cohorts": {}, "resolution": {}, "batch": {}}
    with tempfile.TemporaryDirectory() as folder:
        for scans in SIZES:
            table["cohorts"][scans] = {
                name: train_on(scans, arguments.steps, limit, Path(folder))
                for name, limit in (("in_memory", 1e3), ("mapped_cold", 0), ("mapped_warm", 0))
            }
            print(scans, table["cohorts"][scans], flush=True)
    for phase, name in PHASES.items():
        if name != "encoder":
            table["resolution"][phase] = {resolution: growth(name, resolution, 4) for resolution in RESOLUTIONS}
            table["batch"][phase] = {batch: growth(name, 64, batch) for batch in BATCHES}
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
