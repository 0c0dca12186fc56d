"""What the commands share: configs, their mistakes, help; and the Makefile that calls them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly3d import evaluate, score, train
from tests.conftest import TINY, refused

ROOT = Path(__file__).parents[1]


def test_no_phase_is_answered_by_one_sentence(places, capsys):
    assert train.main(places) == 2
    refused(capsys, "+phase=gan", "+phase=encoder", "+phase=finetune")


def test_an_unknown_phase_is_answered_by_one_sentence(places, capsys):
    assert train.main(["+phase=gam", *places]) == 2
    refused(capsys, "phase/gam", "encoder", "finetune", "gan")


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("++phase.steps=5", "multiple"),
        ("model.resolution=40", "resolution"),
        ("model.channles=4", "channles"),
        ("dataset=nope", "nope"),
        ("preprocessing.crop=tight", "crop"),
        ("trainer.precison=16", "precison"),
        ("trainer.precision=12", "precision"),
        ("trainer.devices=three", "trainer"),
        ("model.generator_norm=instance", "instance"),
        ("model.spatial_dims=2", "spatial_dims"),
        ("++phase.steps_per_epoch=0", "at least 1"),
        ("workers=two", "workers"),
        ("++phase.module.optimizer.lr=fast", "lr"),
        ("++phase.monitor=gan/val_loss", "phase.monitor"),
    ],
)
def test_config_mistakes_name_the_key(places, capsys, override, word):
    arguments = ["+phase=gan", "run=wrong", *places, *TINY, override]
    assert train.main(arguments) == 2
    refused(capsys, word)


def test_an_untrained_run_names_the_remedy(places, capsys):
    assert evaluate.main(["run=nobody", *places]) == 2
    refused(capsys, "make demo", "run=")
    assert score.main(["run=nobody", "scans=[a.nii]", *places]) == 2
    refused(capsys, "make demo", "run=")


def test_a_run_may_be_named_by_a_number(places, capsys):
    assert evaluate.main(["run=2024", *places]) == 2
    refused(capsys, "2024", "make demo")


def test_help_is_quick_to_import():
    code = (
        "import sys, anomaly3d.train; print([m for m in ('torch', 'lightning', 'monai', 'wandb') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_every_config_file_composes():
    from hydra import compose, initialize_config_dir

    from anomaly3d.cli import CONF

    with initialize_config_dir(CONF, version_base="1.3"):
        for group in ("phase", "model", "detector", "trainer", "logger", "dataset", "experiment"):
            for file in sorted((Path(CONF) / group).glob("*.yaml")):
                overrides = [f"+{group}={file.stem}" if group in ("phase", "experiment") else f"{group}={file.stem}"]
                if group != "phase":
                    overrides.insert(0, "+phase=gan")
                assert compose("train", overrides).phase.steps > 0, file


def test_the_makefile_runs_what_the_readme_says():
    text = (ROOT / "Makefile").read_text()
    order = re.findall(r"anomaly3d\.(\w+)(?: -m \+phase=([\w,]+))?", text)
    assert order == [("prepare", ""), ("train", "gan,encoder,finetune"), ("evaluate", "")]
