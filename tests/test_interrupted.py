"""``anomaly3d.train`` where a phase was ended before its time, or is to have more steps: it goes on."""

import json
import os
import shutil
import signal
import time

import pandas as pd
import torch

from anomaly3d import train
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.gan import GANPhase
from anomaly3d.system.files import sha256
from tests.conftest import TINY, refused


def test_more_steps_resume_and_give_what_one_go_gives(tiny_run, places):
    """4 + 4 steps equal 8 steps bit for bit in float32."""
    exact = [*places, *TINY, "trainer.precision=32-true", "logger=none", "+phase=gan"]
    assert train.main([*exact, "run=halves"]) == 0
    assert train.main([*exact, "run=halves", "++phase.steps=8"]) == 0
    assert train.main([*exact, "run=whole", "++phase.steps=8"]) == 0
    states = [
        torch.load(tiny_run.parent / r / "fanogan" / "gan" / "model.pt", weights_only=True)["state"]
        for r in ("halves", "whole")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_a_damaged_checkpoint_and_a_damaged_model_are_sentences(tiny_run, places, capsys):
    run = tiny_run.parent / "damaged"
    shutil.copytree(tiny_run, run)
    last, model = (run / "fanogan" / "gan" / name for name in ("checkpoints/last.ckpt", "model.pt"))
    last.write_bytes(last.read_bytes()[:-1000])
    half = shutil.copytree(run, run.parent / "half-damaged")
    shutil.rmtree(half / "fanogan" / "encoder")  # which began with its model
    previous = last.with_name("previous.ckpt")
    previous.write_bytes(previous.read_bytes()[:-1000])
    assert train.main(["+phase=gan", "run=damaged", *places, *TINY, "++phase.steps=8"]) == 2
    refused(capsys, "last.ckpt is damaged or cut short", "overwrite=true")
    model.write_bytes(model.read_bytes()[:1000])
    assert train.main(["+phase=encoder", "run=damaged", *places, *TINY, "overwrite=true"]) == 2
    refused(capsys, "model.pt is damaged", "train its phase anew")
    assert train.main(["+phase=gan", "run=half-damaged", *places, *TINY, "++phase.steps=8", "logger=none"]) == 0
    out = capsys.readouterr().out
    assert "previous.ckpt is taken in its place" in out
    assert "gan: step 4/8" in out  # one epoch earlier


def test_an_interrupted_overwrite_goes_on(tiny_run, places, capsys, monkeypatch):
    """And gives what an uninterrupted one gives; a finished phase is trained anew each time it is asked for."""
    exact = [*places, *TINY, "trainer.precision=32-true", "+phase=gan", "overwrite=true", "seed=4"]
    run = tiny_run.parent / "replaced"
    shutil.copytree(tiny_run, run)
    with monkeypatch.context() as patch:
        patch.setattr(GANPhase, "on_train_epoch_start", interrupt_second_epoch)
        assert train.main([*exact, "run=replaced"]) == 130
    time.sleep(1.1)  # W&B names its folders by the second
    assert train.main([*exact, "run=replaced"]) == 0
    assert "goes on where overwrite=true was interrupted" in capsys.readouterr().out
    table = pd.read_csv(run / "fanogan" / "gan" / "training.csv")
    assert table["step"].tolist() == [2, 4]
    assert {"critic_loss", "gradient_norm", "val_wasserstein", "health_sameness"} <= set(table.columns)
    ids = {path.name.rsplit("-", 1)[1] for path in run.glob("wandb/offline-run-*")}
    lineage = json.loads((run / "fanogan" / "gan" / "lineage.json").read_text())
    assert lineage["wandb"] in ids
    same = [path for path in run.glob("wandb/offline-run-*") if path.name.endswith(lineage["wandb"])]
    assert len(same) == 2  # both parts are one W&B run
    assert train.main([*exact, "run=whole4", "logger=none"]) == 0
    digests = {sha256(tiny_run.parent / name / "fanogan" / "gan" / "model.pt") for name in ("replaced", "whole4")}
    assert len(digests) == 1
    assert train.main([*exact, "run=whole4", "logger=none"]) == 0
    out = capsys.readouterr().out
    assert "gan: begins anew" in out
    assert "goes on" not in out


def interrupt_second_epoch(phase):
    """Ctrl-C after the first validation and its checkpoint."""
    if phase.current_epoch == 1:
        raise KeyboardInterrupt


def test_an_interrupted_overwrite_of_all_phases_keeps_those_that_it_has_replaced(tiny_run, places, capsys, monkeypatch):
    run = tiny_run.parent / "all-replaced"
    shutil.copytree(tiny_run, run)
    words = [f"run={run.name}", *places, *TINY, "overwrite=true", "seed=5", "logger=none"]
    with monkeypatch.context() as patch:
        patch.setattr(EncoderPhase, "on_train_epoch_start", interrupt_second_epoch)
        assert train.main(words) == 130
    before = sha256(run / "fanogan" / "gan" / "model.pt")
    other = run.with_name("replaced-by-another")
    shutil.copytree(run, other)
    capsys.readouterr()
    assert train.main([f"run={other.name}", *words[1:], "seed=6"]) == 0  # another one than was interrupted
    assert "gan: begins anew" in capsys.readouterr().out
    assert train.main(words) == 0
    out = capsys.readouterr().out
    assert "gan: run all-replaced has finished it" in out
    assert "encoder: goes on where overwrite=true was interrupted" in out
    assert sha256(run / "fanogan" / "gan" / "model.pt") == before
    assert train.main([*words[:-1], "logger=none", "+phase=gan"]) == 0
    assert "gan: begins anew" in capsys.readouterr().out


def test_slurms_signal_leaves_the_last_whole_epoch_to_go_on_from(tiny_run, places, monkeypatch):
    """Lightning would save in the middle of an epoch, and take that checkpoint before all others."""
    exact = [*places, *TINY, "trainer.precision=32-true", "logger=none", "+phase=gan"]
    for name, value in {"JOB_ID": "7", "NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with monkeypatch.context() as patch:
        patch.setattr(GANPhase, "on_train_batch_end", end_third_batch)
        patch.setattr("anomaly3d.cli.requeue", lambda: True)
        assert train.main([*exact, "run=requeued"]) == 128 + signal.SIGUSR1
    folder = tiny_run.parent / "requeued" / "fanogan" / "gan"
    assert not list(folder.rglob("hpc_ckpt*"))
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["batches_seen"] == 2
    assert train.main([*exact, "run=requeued"]) == 0
    assert train.main([*exact, "run=once"]) == 0
    assert len({sha256(tiny_run.parent / run / "fanogan" / "gan" / "model.pt") for run in ("requeued", "once")}) == 1


def end_third_batch(phase, *_):
    """SLURM's signal in the middle of the second epoch."""
    if phase.batches_seen == 3:
        os.kill(os.getpid(), signal.SIGUSR1)
