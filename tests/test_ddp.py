"""Two processes on the CPU (gloo), started as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly3d import evaluate, train
from anomaly3d.runs.lineage import flatten
from anomaly3d.scoring.writer import read_scores
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
    before = torch.load(run / "fanogan" / "finetune" / "checkpoints" / "last.ckpt", weights_only=True)
    assert train.main(["+phase=finetune", *shared, "++phase.steps=6"]) == 0
    after = torch.load(run / "fanogan" / "finetune" / "checkpoints" / "last.ckpt", weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)


def test_scores_of_two_processes_are_those_of_one(tiny_run, places):
    """5 test scans on 2 processes: none is lost, none counts twice, and every number is the same."""
    run = tiny_run.parent / "same"  # a copy: other tests look at the tiny run
    shutil.copytree(tiny_run, run)
    same = ["run=same", *places, "trainer.precision=32-true", "batch=2", "logger=none"]
    assert evaluate.main(same) == 0
    folder = run / "evaluation"
    scores = folder / "fanogan" / "scores.csv"
    one = read_scores(scores), flatten(json.loads((folder / "metrics.json").read_text()))
    shutil.rmtree(folder)
    command("anomaly3d.evaluate", *same, "trainer=ddp", "trainer.devices=2")
    two = read_scores(scores), flatten(json.loads((folder / "metrics.json").read_text()))
    assert list(two[0]["scan_id"]) == list(one[0]["scan_id"])
    np.testing.assert_allclose(two[0]["total"], one[0]["total"], rtol=1e-12)
    assert two[1].keys() == one[1].keys()
    for name, value in one[1].items():
        assert two[1][name] == (pytest.approx(value, abs=1e-12) if isinstance(value, float) else value), name
