"""Does training wait for data, does a volume cost the same in a large cohort, and what do resolution and batch cost?

``python -m experiments.speed.data --json out.json`` trains phase 1 of ``model=compact`` for some steps on prepared
cohorts of 100 to 2,000 scans, in memory and memory-mapped, in turn; then at several resolutions and batches, with and
without gradient checkpointing. Peak memory comes from a process each.
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

from anomaly3d.cohorts.manifest import write_manifest
from anomaly3d.data import HeadCTDataModule
from anomaly3d.hardware import make_trainer, recompute_activations, trainer_options
from anomaly3d.memory import keep_freed_memory
from anomaly3d.quiet import hush
from anomaly3d.training import build_phase
from experiments.speed.train import InTurn, config_of, fit, peak_of_this_process, volumes

SIZES = (100, 500, 2000)
DIFFERENT = 20  # volumes on disk; the scans of a cohort are links to them
RESOLUTIONS, BATCHES = (32, 64, 96, 128), (1, 4, 8, 16)


def prepared_cohort(folder: Path, scans: int) -> Path:
    """A prepared folder of random volumes: a manifest whose rows share files."""
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
    return folder


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
    data.dataset("train")
    read = time.perf_counter() - started
    waiting = Waiting()
    options, _ = trainer_options(config.trainer)
    trainer = make_trainer(
        {**options, "limit_val_batches": 0},
        logger=False,
        callbacks=[waiting],
        max_epochs=1,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit(build_phase(config, None), data)
    step, wait = float(np.median(waiting.steps)), float(np.median(waiting.waits))
    return {
        "read_s": round(read, 2),
        "s_a_volume": round((step + wait) / config.phase.batch, 5),
        "waits": round(wait / (step + wait), 5),
    }


def growth_cell(resolution: int, batch: int, checkpointing: bool) -> None:
    """Print seconds a volume and the peak of this process in MB."""
    config = config_of("gan", "compact", f"model.resolution={resolution}", f"++phase.batch={batch}")
    phase = build_phase(config, None)
    if checkpointing:
        recompute_activations(phase.detector)
    in_turn = InTurn(None)
    fit(phase, config, 4, in_turn)
    seconds = float(np.median(in_turn.seconds["ours"][1:])) / batch
    print(json.dumps({"s_a_volume": round(seconds, 4), "mb": round(peak_of_this_process())}))


def growth(resolution: int, batch: int, checkpointing: bool) -> dict[str, float]:
    """One cell in a process of its own."""
    cell = [str(resolution), str(batch), str(int(checkpointing))]
    command = [sys.executable, "-W", "ignore", "-m", "experiments.speed.data", "--cell", *cell]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cell", nargs=3, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.cell:
        return growth_cell(arguments.cell[0], arguments.cell[1], bool(arguments.cell[2]))
    table: dict[str, Any] = {"cohorts": {}, "resolution": {}, "batch": {}}
    with tempfile.TemporaryDirectory() as folder:
        for scans in SIZES:
            table["cohorts"][scans] = {
                name: train_on(scans, arguments.steps, limit, Path(folder))
                for name, limit in (("in_memory", 1e3), ("mapped_cold", 0), ("mapped_warm", 0))
            }
            print(scans, table["cohorts"][scans], flush=True)
    for resolution in RESOLUTIONS:
        table["resolution"][resolution] = {
            name: growth(resolution, 4, on) for name, on in (("plain", False), ("checkpointing", True))
        }
        print(resolution, table["resolution"][resolution], flush=True)
    for batch in BATCHES:
        table["batch"][batch] = {
            name: growth(64, batch, on) for name, on in (("plain", False), ("checkpointing", True))
        }
        print(batch, table["batch"][batch], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
