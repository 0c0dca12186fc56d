"""What README and documentation say can be done; their commands are in ``test_docs``."""

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
DOCS = ROOT / "docs"


@pytest.fixture
def scan(tiny_run, tmp_path):
    """A scan of the tiny run, in a folder of its own."""
    shutil.copy(sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0], tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_its_python_runs(tiny_run, scan, tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "howto" / "python.md").read_text(), re.DOTALL)
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


def test_every_choice_of_a_group_is_named_and_no_other():
    table = (DOCS / "reference" / "settings.md").read_text().split("## Groups")[1]
    rows = re.findall(r"^\| `\+?([\w/]+)` \| ([^|]*) \|$", table, re.M)
    assert {group for group, _ in rows} == {
        str(path.parent.relative_to(ROOT / "conf")) for path in (ROOT / "conf").glob("*/**/*.yaml")
    }
    for group, choices in rows:
        files = {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}
        keys = set(
            re.findall(r"^ *(\w+):", "".join(p.read_text() for p in (ROOT / "conf" / group).glob("*.yaml")), re.M)
        )
        named = set(re.findall(r"`(\w+)`", choices))
        assert files <= named | {"none"}, (group, files - named)
        assert named <= files | keys, (group, named - files)


def test_its_study_file_is_read_as_it_stands(tmp_path):
    (text,) = re.findall(r"```yaml\n(run: study\n.*?)```", (DOCS / "howto" / "own_study.md").read_text(), re.DOTALL)
    (tmp_path / "my.yaml").write_text(text)
    words = completed("train", [f"study={tmp_path}/my.yaml", f"runs_dir={tmp_path}"])
    assert words[:2] == ["run='study'", "dataset=manifest"]
    assert f"++dataset.manifest='{tmp_path}/manifest.csv'" in words
    assert {"model=paper", "callbacks=ema", "++phases.gan.steps=50000"} <= set(words)
    assert completed("score", [f"study={tmp_path}/my.yaml"]) == ["run='study'"]
