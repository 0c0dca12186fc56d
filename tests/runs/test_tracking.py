"""What Weights & Biases gets, read back from the offline files of the tiny run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from anomaly3d import dashboard
from anomaly3d.errors import UserError
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.gan import GANPhase
from anomaly3d.runs.tracking import asked_mode, make_logger, numbers_of, scrub, wandb_mode
from tests.conftest import refused


def test_weights_and_biases_run_read_back(tiny_run):
    """The offline files hold the losses, the curves, the lineage and nothing that names this machine."""
    runs = sorted(tiny_run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(runs) >= 4  # three phases and each evaluation
    texts = [
        subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", str(r), "--json"], capture_output=True, text=True
        ).stdout
        or r.read_bytes().decode("latin-1")
        for r in runs
    ]
    keys = {
        "gan": [
            "gan/critic_loss",
            "gan/health_sameness",
            "gan/health_copying",
            "gan/gradient_norm",
            "gan/wasserstein",
            "gan/generator_loss",
            "gan/samples",
        ],
        "encoder": [
            "encoder/image",
            "encoder/val_pseudo_auc",
            "encoder/health_saturation",
            "encoder/feature",
            "encoder/val_loss",
            "encoder/val_pseudo_roc",
            "encoder/val_pseudo_pr",
        ],
        "finetune": [
            "finetune/image",
            "finetune/health_gap",
            "model_sha256",
            "finetune/val_loss",
            "finetune/reconstructions",
        ],
    }
    keys["evaluation"] = [
        "evaluation/results.all.auc.value",
        "evaluation/test_roc",
        "evaluation/roc",
        "evaluation/cases",
        "evaluation/scans",
    ]
    whole = "\n".join(texts)
    for phase, wanted in keys.items():
        text = next(t for t in texts if f"{phase}/" in t)
        for key in [*wanted, "config_hash", "parent_sha256"]:
            assert key in text, key
    assert "/test_auc" not in whole  # training looks at no test scan
    assert str(tiny_run.parent) not in whole
    assert os.uname().nodename not in whole or len(os.uname().nodename) < 5
    assert "train-0000" not in whole
    assert "epidural-0000" not in whole


def test_the_dashboard_holds_what_runs_log(tiny_run, capsys):
    assert dashboard.main(["dry_run=true"]) == 0
    assert "1 Is the GAN healthy?: 6 panels" in capsys.readouterr().out
    assert dashboard.main([]) == 2
    refused(capsys, "entity=NAME")
    logged = "".join(r.read_bytes().decode("latin-1") for r in tiny_run.glob("wandb/offline-run-*/run-*.wandb"))
    phases = (GANPhase, EncoderPhase, FinetunePhase)
    keys = [key for _, panels in dashboard.layout(list(phases)) for _, names in panels for key in names]
    figures = [f"evaluation/{name}" for name in dashboard.EVALUATION if name != "volumes"]  # which takes a threshold
    for key in [*keys, *dashboard.SCALARS, *figures]:
        assert key in logged, key


def test_modes_of_weights_and_biases(monkeypatch, capsys):
    """Asked for in the config or by WANDB_MODE; else wandb's own login decides, on any server."""
    assert (asked_mode("offline"), asked_mode("auto")) == ("offline", "offline")  # WANDB_MODE of the tests
    monkeypatch.setenv("WANDB_MODE", "dryrun")
    assert asked_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert make_logger({"_target_": "anomaly3d.runs.tracking.PrivateWandbLogger", "mode": "auto"}, Path(), "x") is None
    monkeypatch.setenv("WANDB_MODE", "nowhere")
    with pytest.raises(UserError, match=r"'nowhere'.*offline, disabled"):
        asked_mode("auto")
    monkeypatch.delenv("WANDB_MODE")
    no_key, no_network = wandb.errors.UsageError("no key"), OSError("no network")
    for answer, mode in ((no_key, "offline"), (no_network, "offline"), (None, "online")):
        monkeypatch.setattr(wandb, "Api", lambda timeout, answer=answer: raise_or_none(answer))
        assert wandb_mode("auto") == mode
    assert "out of reach (OSError)" in capsys.readouterr().out


def test_without_a_login_a_run_is_offline_from_the_start(tmp_path):
    """In a process of its own, as wandb remembers what it has seen: the very first run of a new user."""
    code = (
        "from pathlib import Path\nfrom anomaly3d.runs.tracking import make_logger\n"
        "config = {'_target_': 'anomaly3d.runs.tracking.PrivateWandbLogger', 'mode': 'auto'}\n"
        "print(make_logger(config, Path('run'), 'phase').experiment.settings.mode)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["W&B: offline, in run/wandb", "offline"], done.stdout + done.stderr


def test_intervals_are_numbers_and_places_stay_here():
    metrics = {"results": {"all": {"auc": {"value": 0.7, "ci95": [0.6, 0.8], "n_normal": 3}}}, "by": "config"}
    assert numbers_of(metrics, "evaluation/") == {
        "evaluation/results.all.auc.value": 0.7,
        "evaluation/results.all.auc.ci95_low": 0.6,
        "evaluation/results.all.auc.ci95_high": 0.8,
        "evaluation/results.all.auc.n_normal": 3,
    }
    config = {
        "dataset": {"root": "x", "label": 0, "other": "/home/ada/ct"},
        "transforms": [{"file": "C:\\ct"}],
        "a": "b.C",
    }
    assert scrub(config) == {"dataset": {"label": 0}, "transforms": [{}], "a": "b.C"}


def test_a_dashboard_without_a_login_is_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dashboard.main(["entity=team"]) == 2
    refused(capsys, "not logged in to W&B", "wandb login")


def raise_or_none(error):
    if error:
        raise error
