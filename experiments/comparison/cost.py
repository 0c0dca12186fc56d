"""Seconds a step and a scan of every method, parameters, and peak memory: ``python -m experiments.comparison.cost``.

Each phase trains a few steps on the race's scans in a process of its own. What is in ``cost.json`` already is left;
``methods.steps_in`` turns minutes into steps with it, so it wants a machine that does nothing else.
"""

import json
import multiprocessing
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from hydra import compose, initialize_config_dir

from anomaly3d.cli import CONF, plain
from anomaly3d.phases.base import Phase, Predicting, freeze
from anomaly3d.prepare import build_study
from anomaly3d.system.files import written_whole
from anomaly3d.system.memory import keep_freed_memory
from anomaly3d.system.progress import say
from anomaly3d.system.quiet import hush
from anomaly3d.system.trainer import describe_trainer, make_trainer, resolve_trainer
from anomaly3d.training.job import Job
from anomaly3d.training.run import build_data, build_phase
from experiments.comparison.methods import METHODS, cohort
from experiments.speed.train import now, peak_of_this_process

HERE = Path(__file__).parent
WARM, STEPS, BATCHES = 3, 12, 3


class Clock(L.Callback):
    """Seconds of each training step and of each batch of scans."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.predict: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.started = now(module.device)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.train.append(now(module.device) - self.started)

    def on_predict_batch_start(self, *args: Any) -> None:
        self.started = time.perf_counter()

    def on_predict_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
        self.predict.append((now(module.device) - self.started) / len(batch["image"]))


def job_of(detector: str, phase: str) -> Job:
    """A phase on the race's scans, with networks that have learned nothing."""
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [f"+phase={phase}", f"detector={detector}", *cohort()])
    study = build_study(config)
    return Job(study.prepare(), study.preprocessor.resolution, True, Path("runs/race-cost"), plain(config))


def measure(detector: str, phase: str, out: Any) -> None:
    """Put what a phase costs into ``out``."""
    hush()
    keep_freed_memory()
    job, clock = job_of(detector, phase), Clock()
    short = {"steps": WARM + STEPS, "steps_per_epoch": WARM + STEPS}
    config: dict[str, Any] = {**job.config, "phase": {**job.phase, **short}}
    job = replace(job, config=config)
    module: Phase = build_phase(job, None)
    options = resolve_trainer(config["trainer"])
    more: dict[str, Any] = dict(logger=False, callbacks=[clock], max_epochs=1, enable_checkpointing=False)
    more |= dict(limit_val_batches=0, limit_predict_batches=BATCHES, inference_mode=not module.detector.needs_gradients)
    trainer = make_trainer(options, **more)
    data = build_data(job, module.detector)
    trainer.fit(module, data)
    memory = peak_of_this_process()
    freeze(module.detector)
    trainer.predict(Predicting(module.detector), data, return_predictions=False)
    out.put(
        {
            "seconds_a_step": round(statistics.median(clock.train[WARM:]), 4),
            "volumes_a_step": job.phase["batch"],
            "seconds_a_scan": round(statistics.median(clock.predict[1:]), 4),
            "parameters": sum(p.numel() for p in module.detector.parameters()),
            "memory_mb": round(memory),
            "on": describe_trainer(options, 1),
        }
    )


def main(names: list[str]) -> None:
    """Measure what is not there yet."""
    file = HERE / "cost.json"
    known: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    processes = multiprocessing.get_context("spawn")
    for name in names or METHODS:
        for phase in METHODS[name].phases:
            if phase in known.get(name, {}):
                continue
            say(f"{name}, {phase}")
            out = processes.Queue()
            process = processes.Process(target=measure, args=(name, phase, out))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(f"{name}, {phase}: exit code {process.exitcode}")
            known.setdefault(name, {})[phase] = out.get()
            with written_whole(file) as beside:
                beside.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
