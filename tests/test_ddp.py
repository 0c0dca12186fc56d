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
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from anomaly3d import evaluate, train
from anomaly3d.runs.lineage import flatten
from anomaly3d.scoring.writer import read_scores
from tests.conftest import TINY


def command(*arguments, processes=1, **environment):
    """Run Python with these arguments, in ``processes`` at once where they find each other."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **environment}
    calls = [
        subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**common, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
            if "SLURM_JOB_ID" in common
            else common,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    for call in calls:
        out = call.communicate(timeout=300)[0]
        assert call.returncode == 0, out


SLURM = {  # of srun with two tasks
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NODELIST": "localhost",
    "SLURM_NODEID": "0",
    "SLURM_NTASKS": "2",
    "SLURM_NTASKS_PER_NODE": "2",
}


def test_phases_train_on_two_processes_however_they_are_started_and_resume_on_one(tiny_run, places, capsys):
    """By Lightning, also in a multirun; by torchrun, on two machines that meet; by SLURM."""
    shared = ["run=two", *places, *TINY, "logger=none", "trainer.precision=32-true"]
    two = ["trainer=ddp", "trainer.devices=2", *shared]
    finetune = ["anomaly3d.train", "+phase=finetune", *two]
    run = Path(places[1].split("=")[1]) / "two"

    def epochs():
        return torch.load(run / "fanogan" / "finetune" / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] + 1

    command("anomaly3d.train", "-m", "+phase=gan,encoder", *two)
    meeting = f"--rdzv-endpoint=localhost:{find_free_network_port()}"
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", meeting, "--local-addr=localhost"]
    apart = [*finetune, "trainer.devices=1", "trainer.num_nodes=2"]
    command("torch.distributed.run", *nodes, "-m", *apart, processes=2)
    assert epochs() == 2
    made = json.loads((run / "fanogan" / "finetune" / "lineage.json").read_text())
    assert (made["finished"], made["made_with"]["hardware"].split(", ")[-1]) == (True, "2 processes")
    port = str(find_free_network_port())
    command(*finetune, "++phase.steps=6", processes=2, MASTER_PORT=port, **SLURM)
    assert epochs() == 3
    assert train.main(["+phase=finetune", *shared, "++phase.steps=8"]) == 0
    assert epochs() == 4
    assert "begun with 2 processes, it goes on with 1: a step now learns from 2 volumes and not 4" in " ".join(
        capsys.readouterr().out.split()
    )
    made = json.loads((run / "fanogan" / "finetune" / "lineage.json").read_text())["made_with"]
    assert [made[key].split(", ")[-1] for key in ("began_with", "hardware")] == ["2 processes", "1 process"]


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
