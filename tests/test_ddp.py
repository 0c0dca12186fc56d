"""Two processes on the CPU (gloo), started as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from anomaly3d import evaluate, train
from anomaly3d.evaluation.callbacks import read_scores
from tests.conftest import TINY


def command(module, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_phase_trains_on_two_processes_and_resumes_on_one(tiny_run, places):
    shared = ["run=two", *places, *TINY, "logger=none", "trainer.precision=32-true"]
    two = ["trainer=ddp", "trainer.devices=2", *shared]
    for phase in ("gan", "encoder", "finetune"):
        command("anomaly3d.train", f"+phase={phase}", *two)
    run = Path(places[1].split("=")[1]) / "two"
    before = torch.load(run / "finetune" / "checkpoints" / "last.ckpt", weights_only=True)
    assert train.main(["+phase=finetune", *shared, "++phase.steps=6"]) == 0
    after = torch.load(run / "finetune" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)


def test_scores_of_two_processes_are_those_of_one(tiny_run, places):
    """5 test scans on 2 processes: none is lost, none counts twice."""
    same = ["run=tiny", *places, "trainer.precision=32-true", "batch=2"]
    assert evaluate.main(same) == 0
    one = read_scores(tiny_run / "evaluation" / "scores.csv")
    (tiny_run / "evaluation" / "scores.csv").unlink()
    command("anomaly3d.evaluate", *same, "trainer=ddp", "trainer.devices=2")
    two = read_scores(tiny_run / "evaluation" / "scores.csv")
    assert list(two["scan_id"]) == list(one["scan_id"])
    np.testing.assert_allclose(two["total"], one["total"], rtol=1e-5)
