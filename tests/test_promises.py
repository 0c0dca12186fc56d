"""The promises of the house: a new detector, cohort or modality is one file and one config, and everything follows.

Each is added from ``tests/toys`` by configs alone and goes through the commands as a user types them.
"""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from anomaly3d import Scorer, compare, evaluate, prepare, score, train
from anomaly3d.runs.folder import choose_trained
from anomaly3d.runs.lineage import flatten
from anomaly3d.system.files import sha256
from anomaly3d.system.instantiate import allow
from tests.conftest import TINY, refused

TOYS = Path(__file__).parent / "toys"
MINE = [f"hydra.searchpath=[file://{TOYS / 'conf'}]", "plugins=[tests.toys]"]
SMALL = [o for o in TINY if not o.startswith(("dataset.", "preprocessing.", "++phase."))]


@pytest.fixture(autouse=True)
def no_plugins():
    """What one command may name, the next one may not."""
    yield
    allow([])


@pytest.fixture
def raw(tiny_run):
    """The folder of the tiny run's raw scans."""
    return next((tiny_run.parents[1] / "data" / "raw").glob("phantom-*/ct"))


def through_the_rest(name: str, detector: str, places: list[str], scan: Path, out: Path) -> dict:
    """Evaluate, report, score and compare; returns the metrics."""
    run = Path(places[1].split("=")[1]) / name
    arguments = [f"run={name}", *places, "plugins=[tests.toys]"]
    assert evaluate.main([*arguments, "logger=none", f"detector={detector}"]) == 0
    assert score.main([*arguments, f"detector={detector}", f"scans=[{scan}]", f"out={out}"]) == 0
    named = f"detectors={{mine: [{name}/{detector}], theirs: [{name}/mean_volume]}}"
    assert compare.main([named, places[1], f"out={out}/compared.json"]) == 0
    assert (out / "compared.json").exists()
    return json.loads((run / "evaluation" / "metrics.json").read_text())


def test_a_new_detector(tiny_run, places, raw, tmp_path, capsys):
    run = tiny_run.parent / "toy-detector"
    train_it = ["detector=toy", "run=toy-detector", *places, *MINE]
    small = [o for o in TINY if not o.startswith("++phase.")]
    assert train.main([*train_it, *small]) == 0
    half = torch.load(run / "toy" / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert train.main([*train_it, *small, "++phase.steps=6"]) == 0  # it goes on
    whole = torch.load(run / "toy" / "fit" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert (half, whole) == (4, 6)
    scan = sorted(raw.glob("subdural*"))[0]
    metrics = through_the_rest("toy-detector", "toy", places, scan, tmp_path)
    expected = {
        "title": "toy autoencoder",
        "role": "method",
        "stage": "fit",
        "model": sha256(run / "toy" / "fit" / "model.pt"),
    }
    assert metrics["detectors"]["toy"] == expected
    assert {"error", "energy"} <= set(metrics["results"]["part"])
    assert {"balanced", "kappa_10", "peak", "edges_peak"} <= set(metrics["score"]["pseudo_auc"])
    assert set(metrics["localization"]["lesion_mask"]) == {"residual", "standardised", "edges", "edges_standardised"}
    page = (run / "evaluation" / "report.html").read_text()
    assert "Toy autoencoder of run toy-detector" in page
    row = pd.read_csv(tmp_path / "scores.csv").iloc[0]
    assert row["total"] == pytest.approx(row["error"] + row["energy"])
    original = nib.load(scan)
    for kind in ("input", "reconstruction", "residual", "edges", "brain_mask"):
        image = nib.load(tmp_path / scan.name.removesuffix(".nii.gz") / f"{kind}.nii.gz")
        assert image.shape == original.shape
        np.testing.assert_allclose(image.affine, original.affine)
    capsys.readouterr()
    assert score.main(["run=toy-detector", "detector=toy", *places, f"scans=[{scan}]", f"out={tmp_path}"]) == 2
    refused(capsys, "tests.toys.detector.Blur", "plugins=[...]")  # a model file may not name anything


def test_a_new_cohort(tiny_run, places, raw, tmp_path, capsys):
    mine = ["dataset=toy", "run=toy-cohort", *places, *MINE]
    coarse = [o for o in TINY if o.startswith("preprocessing.")]
    assert train.main(["detector=mean_volume", *mine, "dataset.root=/no/such/place", *coarse]) == 2
    refused(capsys, "dataset.root=/no/such/place")
    assert prepare.main(["dataset=toy", f"dataset.root={raw}", *places, *MINE, *coarse, "workers=2"]) == 0
    assert train.main(["detector=mean_volume", *mine, f"dataset.root={raw}", *coarse, "logger=none"]) == 0
    metrics = through_the_rest("toy-cohort", "mean_volume", places, sorted(raw.glob("subdural*"))[0], tmp_path)
    found = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())["results"]["other"]["mean_volume"]
    assert metrics["results"]["all"]["auc"]["value"] == found["auc"]["value"]  # the same scans by another way
    assert not metrics["localization"]  # the names say of no mask


def test_a_new_modality(tiny_run, places, raw, tmp_path):
    mine = ["preprocessing=toy", "detector=pca", "run=toy-modality", *places, *MINE]
    small = [o for o in TINY if not o.startswith(("preprocessing.", "++phase."))]
    assert prepare.main(["preprocessing=toy", *places, *MINE, *(o for o in small if not o.startswith("model"))]) == 0
    assert train.main([*mine, *small, "logger=none"]) == 0
    scan = sorted(raw.glob("subdural*"))[0]
    metrics = through_the_rest("toy-modality", "pca", places, scan, tmp_path)
    numbers = [v for v in flatten(metrics["results"]).values() if isinstance(v, float)]
    assert np.isfinite(numbers).all()
    page = (tiny_run.parent / "toy-modality" / "evaluation" / "report.html").read_text()
    assert '"unit": "z"' in page
    shown = nib.load(tmp_path / scan.name.removesuffix(".nii.gz") / "input.nii.gz").get_fdata()
    assert np.abs(shown).max() <= 3  # in units of the spread, not HU
    trained = choose_trained(tiny_run.parent / "toy-modality", "pca")
    allow(["tests.toys"])
    result = Scorer.from_run(trained.folder.path.parents[1], "pca", data_dir=tmp_path).score(scan)
    assert result.quality["spread"] > 1


def test_other_limits_prepare_nothing_again(tiny_run, places, raw, capsys):
    """A limit is judged when numbers are read: a stricter one rejects, the old one accepts again."""
    mine = ["dataset=toy", f"dataset.root={raw}", "preprocessing=toy", *places, *MINE, "workers=1"]
    assert prepare.main(mine) == 0
    first = capsys.readouterr().out
    assert prepare.main([*mine, "preprocessing.quality.spread=[100000,null]"]) == 0
    strict = capsys.readouterr().out
    assert "0 accepted" in strict
    assert "scans to do" not in strict
    assert prepare.main(mine) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]
