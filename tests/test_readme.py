"""What the README says can be done."""

import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

import anomaly3d
from anomaly3d import score
from anomaly3d.arguments import completed

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scan(tiny_run, tmp_path):
    """A scan of the tiny run, in a folder of its own."""
    shutil.copy(sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0], tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_its_python_runs(tiny_run, scan, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith("accepted ")
    assert nib.load("residual.nii.gz").shape == nib.load(scan).shape
    assert names["findings"].scores["total"].shape == (1,)
    assert names["findings"].reconstruction.shape == (1, 1, 32, 32, 32)


def test_the_scorer_says_what_the_command_says(tiny_run, places, scan, tmp_path):
    assert score.main(["run=tiny", *places, f"scans=[{scan}]", f"out={tmp_path}/out"]) == 0
    row = pd.read_csv(tmp_path / "out" / "scores.csv").iloc[0]
    scorer = anomaly3d.Scorer.from_run(tiny_run, data_dir=places[0].split("=")[1])
    result = scorer.score(scan)
    assert result.verdict == "accepted"
    assert result.scores["total"] == pytest.approx(row["total"], rel=1e-3)  # another batch size, in bfloat16
    assert result.p_value == pytest.approx(row["p_value"])
    for name, image in result.maps.items():
        written = nib.load(tmp_path / "out" / "scan" / f"{name}.nii.gz")
        np.testing.assert_allclose(image.affine, written.affine)
        assert np.abs(np.asarray(image.dataobj, float) - written.get_fdata()).max() <= 2, name
    (tmp_path / "bad.nii.gz").write_bytes(b"no")
    assert scorer.score(tmp_path / "bad.nii.gz").verdict == "unreadable"


def test_every_group_it_names_is_there():
    table = (ROOT / "README.md").read_text().split("## What is configured where")[1].split("## Where outputs go")[0]
    for groups, choices in re.findall(r"^\| (`[^|]*) \| ([^|]*) \|$", table, re.M):
        group = re.findall(r"`\+?([\w/]+)`", groups)[0]
        files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        named = {name for name in re.findall(r"`(\w+)`", choices)}
        assert files <= named | {"none"} or group == "experiment", (group, files - named)


def test_its_study_file_is_read_as_it_stands(tmp_path):
    (text,) = re.findall(r"```yaml\n(run: study\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "my.yaml").write_text(text)
    words = completed("train", [f"study={tmp_path}/my.yaml", f"runs_dir={tmp_path}"])
    assert words[:2] == ["run='study'", "dataset=manifest"]
    assert f"++dataset.manifest='{tmp_path}/manifest.csv'" in words
    assert {"model=paper", "callbacks=ema", "++phases.gan.steps=50000"} <= set(words)
    assert completed("score", [f"study={tmp_path}/my.yaml"]) == ["run='study'"]
