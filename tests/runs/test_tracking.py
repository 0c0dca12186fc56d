"""What Weights & Biases gets, read back from the offline files of the tiny run."""

import getpass
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import wandb

from anomaly3d import dashboard
from anomaly3d.errors import UserError
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.gan import GANPhase
from anomaly3d.runs.tracking import artifact_name, asked_mode, make_logger, numbers_of, scrub, wandb_mode
from experiments.reliability.failures import silent_server
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


def test_no_file_of_an_offline_run_names_a_place_a_scan_or_a_user(tiny_run, places):
    """Whatever text is in them: in the log of the run by its length before it, in tables as JSON, in names of files."""
    table = pd.read_csv(next(Path(places[0].split("=")[1]).glob("phantom*/*/manifest.csv")), dtype=str)
    secret = {*table["scan_id"], *table["subject_id"], getpass.getuser(), os.uname().nodename, Path.home().name}
    secret = {word for word in secret if len(word) > 4 or word == "root"}
    staging = (
        f"{os.environ['WANDB_DATA_DIR']}/artifacts/staging/"  # where wandb lays tables down: not sent, but in its log
    )
    checked = 0
    for folder in tiny_run.glob("wandb/offline-run-*"):
        kept = [folder / f"run-{folder.name.split('-')[-1]}.wandb", *(folder / "files").rglob("*")]
        assert not [path for path in kept if path.name in ("requirements.txt", "wandb-metadata.json")]
        for path in kept:
            assert not [word for word in secret if word in str(path.relative_to(folder))]
            if path.suffix not in (".wandb", ".json", ".yaml", ".txt"):
                continue
            text = path.read_bytes().decode("latin-1").replace(staging, "")
            assert not [word for word in secret if re.search(rf"\b{re.escape(word)}\b", text)], path
            assert not re.search(r"(?<![\w.:])(/|~/|[A-Z]:\\)(home|root|tmp|mnt|data|usr|var|work|Users)\b", text), path
            checked += 1
    assert checked > 8


def test_only_what_is_on_the_list_leaves():
    lineage = {
        "settings": {
            "seed": 3,
            "dataset": {
                "_target_": "anomaly3d.cohorts.folder.FolderCohort",
                "name": "ward-7",
                "root": "/mnt/hospital/ct",
                "reads": "reads.csv",
                "table": "patients smith",
                "scans": ["smith.nii"],
                "counts": {"train": 80},
                "shares": {"train": 0.7},
                "findings": {"Smith, J": "fracture"},
            },
            "preprocessing": {
                "_target_": "anomaly3d.preprocessing.ncct.NCCT",
                "window": [-20.0, 100.0],
                "crop": "template",
                "mask_command": "stripper --licence ada {input} {output}",
                "quality": {"slices": [10, None]},
            },
            "data": {"transforms": {"_target_": "monai.transforms.RandFlipd", "keys": ["image"], "prob": 0.5}},
            "phase": {"name": "gan", "steps": 4, "monitor": "encoder/val_loss", "module": {"file": "C:\\ct"}},
            "detector": {
                "name": "mine",
                "module": {"_target_": "smith.detectors.X", "weights": "smith.pt", "kappa": 1.0},
            },
            "callbacks": {"stop": {"patience": 5, "/mnt/x": 3}},
        },
        "cohort": "ward-7-12345678",
        "config_hash": "abc",
        "host": "ct-server",
        "made_with": {"torch": "2.13.0+cpu", "hardware": "2 CPU cores", "date": "2026-11-26T10:00:00+00:00"},
        "title": "~/mine",
        "synthetic": False,
    }
    assert scrub(lineage) == {
        "settings": {
            "seed": 3,
            "dataset": {
                "_target_": "anomaly3d.cohorts.folder.FolderCohort",
                "counts": {"train": 80},
                "shares": {"train": 0.7},
            },
            "preprocessing": {
                "_target_": "anomaly3d.preprocessing.ncct.NCCT",
                "window": [-20.0, 100.0],
                "crop": "template",
                "quality": {"slices": [10, None]},
            },
            "data": {"transforms": {"_target_": "monai.transforms.RandFlipd", "prob": 0.5}},
            "phase": {"name": "gan", "steps": 4, "monitor": "encoder/val_loss"},
            "detector": {"name": "mine", "module": {"kappa": 1.0}},
            "callbacks": {"stop": {"patience": 5}},
        },
        "config_hash": "abc",
        "made_with": {"torch": "2.13.0+cpu", "hardware": "2 CPU cores", "date": "2026-11-26T10:00:00+00:00"},
        "synthetic": False,
    }


def test_the_dashboard_holds_what_runs_log(tiny_run, capsys):
    assert dashboard.main(["dry_run=true"]) == 0
    assert "1 Is the GAN healthy?: 6 panels" in capsys.readouterr().out
    assert dashboard.main(["dry_run=true", "detector=denoising"]) == 0
    assert "2 What it makes: 2 panels" in capsys.readouterr().out
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


def test_a_server_that_falls_silent_does_not_hold_up_the_end_of_a_run(tmp_path):
    """What was logged stays in the run's folder, for 'wandb sync'."""
    code = (
        "from pathlib import Path\nfrom anomaly3d.runs import tracking\ntracking.FINISH_TIMEOUT = 2\n"
        "config = {'_target_': 'anomaly3d.runs.tracking.PrivateWandbLogger', 'mode': 'online'}\n"
        "logger = tracking.make_logger(config, Path('run'), 'phase')\n"
        "logger.experiment.log({'loss': 1})\ntracking.close_logger(logger)\nprint('closed')"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}  # another one's service
    with silent_server(after_login=True) as server:
        env = {**clean, "WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["W&B: online, project anomaly3d", "closed"], done.stdout + done.stderr
    assert "Timed out finishing run" in done.stderr
    (kept,) = tmp_path.rglob("run-*.wandb")
    assert kept.stat().st_size > 0


def test_intervals_are_numbers_and_places_stay_here():
    metrics = {"results": {"all": {"auc": {"value": 0.7, "ci95": [0.6, 0.8], "n_normal": 3}}}, "by": "config"}
    assert numbers_of(metrics, "evaluation/") == {
        "evaluation/results.all.auc.value": 0.7,
        "evaluation/results.all.auc.ci95_low": 0.6,
        "evaluation/results.all.auc.ci95_high": 0.8,
        "evaluation/results.all.auc.n_normal": 3,
    }
    assert numbers_of({"site": {"/mnt/utrecht": {"auc": 0.7}, "utrecht": {"auc": 0.6}}}, "evaluation/") == {
        "evaluation/site.utrecht.auc": 0.6
    }


@pytest.mark.parametrize(
    ("group", "plain"), [("study", True), ("my study", False), ("größe", False), ("x" * 120, False)]
)
def test_names_of_artifacts_are_such_as_wandb_takes(group, plain):
    """Of any run, and another for another."""
    name = artifact_name(SimpleNamespace(group=group), Path("runs/x/fanogan/gan"))
    assert (name == f"{group}-fanogan-gan") is plain
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name)
    assert name != artifact_name(SimpleNamespace(group=f"{group}é"), Path("runs/x/fanogan/gan"))


def test_a_dashboard_without_a_login_is_a_sentence(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dashboard.main(["entity=team"]) == 2
    refused(capsys, "not logged in to W&B", "wandb login")


def raise_or_none(error):
    if error:
        raise error
