"""``anomaly3d.evaluate dataset=...``: a run judged on a labelled cohort that it has never seen."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from anomaly3d import calibrate, evaluate, score
from anomaly3d.cli import CONF
from anomaly3d.evaluation import run
from anomaly3d.evaluation.elsewhere import layer_kept
from anomaly3d.evaluation.learning import Learned
from anomaly3d.evaluation.options import Options
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.manifest import read_manifest, write_manifest
from anomaly3d.scoring.anomaly_maps import Healthy
from anomaly3d.scoring.calibration import OWN, load_calibration
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.writer import read_scores
from tests.conftest import refused


@pytest.fixture
def few(tiny_run):
    """A copy of the tiny run with one control, so that it is evaluated in seconds; a new one for each test."""
    run = tiny_run.parent / "few"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("wandb", "zscore", "mirror", "*_volume", "encoder"))
    yield run
    shutil.rmtree(run)


@pytest.fixture
def rows(tiny_run):
    """The manifest of the tiny run's scans."""
    cohort = choose_trained(tiny_run, None).lineage["cohort"]
    return read_manifest(tiny_run.parents[1] / "data" / "raw" / cohort / "manifest.csv")


@pytest.fixture
def asked(places, tmp_path):
    """Arguments that evaluate a run on some rows as another hospital's manifest."""

    def of(run, table, *more):
        write_manifest(table, tmp_path / "hospital" / "manifest.csv")
        named = ["dataset=manifest", f"dataset.manifest={tmp_path}/hospital/manifest.csv"]
        return [f"run={run.name}", *places, *named, "logger=none", *more]

    return of


def place_of(run):
    """Where the evaluation of the other cohort went."""
    return max((run / "evaluation_of").glob("hospital-*"), key=lambda path: path.stat().st_mtime)


def test_the_runs_own_test_scans_from_elsewhere_get_the_same_numbers(few, rows, asked, tmp_path, capsys):
    test = rows[rows["split"] == "test"].copy()
    before = {path: path.read_bytes() for path in (few / "evaluation").rglob("*") if path.is_file()}
    own = read_scores(few / "evaluation" / "fanogan" / "rescored.csv").set_index("scan_id")
    trained = rows.loc[rows["split"] == "train", "scan_id"].iloc[0]
    first = test["scan_id"].iloc[0]
    test["scan_id"] = test["scan_id"].replace(first, trained)  # the same name in another hospital
    (tmp_path / "bad.nii").write_text("hello")
    bad = test.iloc[[0]].assign(scan_id="bad", subject_id="bad", image=str(tmp_path / "bad.nii"), twin="")
    every = pd.concat([test, bad, rows[rows["split"] == "validation"]])
    assert evaluate.main(asked(few, every, "voxel_false_alarm_ml=5")) == 3
    assert {path: path.read_bytes() for path in before} == before
    place = place_of(few)
    found = read_scores(place / "fanogan" / "rescored.csv").set_index("scan_id").rename(index={trained: first})
    scores = [c for c in own if pd.api.types.is_float_dtype(own[c])]
    assert len(scores) > 8
    np.testing.assert_allclose(found.loc[own.index, scores], own[scores], rtol=1e-4, atol=1e-7)
    metrics = json.loads((place / "metrics.json").read_text())
    there = json.loads((few / "evaluation" / "metrics.json").read_text())
    for key in ("all", "part"):
        assert metrics["results"][key] == there["results"][key]
    assert metrics["results"]["other"]["pca"] == there["results"]["other"]["pca"]
    assert metrics["results"]["other_selected"]["pca"]["score"] == there["results"]["other_selected"]["pca"]["score"]
    assert metrics["localization"]["lesion_mask"]["residual"] == there["localization"]["lesion_mask"]["residual"]
    assert metrics["set_aside"] == {"unreadable": {"normal": 1}}
    assert metrics["thresholds_from"] == "own"
    notes = " ".join(metrics["notes"])
    for words in ("1 calibration scans of the run's own cohort", f"1 scans are called like scans {'that'}", trained):
        assert words in notes
    assert "2 of the split validation" in notes
    assert "Voxel thresholds leave 10 ml of a healthy brain, as in the run's own evaluation, not 5" in notes
    page = (place / "report.html").read_text()
    assert "few on phantom (hospital-" in page
    assert "of the run&#39;s own cohort" in page
    assert "  bad: unreadable: " in capsys.readouterr().out


def test_without_calibration_labels_of_both_kinds_and_masks_it_says_what_it_cannot_say(few, rows, asked):
    bare = few.parent / "bare"
    shutil.copytree(few, bare, ignore=shutil.ignore_patterns("pca", "evaluation*", "own.json", "utrecht.*"))
    ill = rows[(rows["split"] == "test") & (rows["label"] == "1")].head(2)
    assert evaluate.main(asked(bare, ill.assign(lesion_mask="", mass_effect_mask=""))) == 0
    assert load_calibration(choose_trained(bare, None), OWN) is None  # other files lie there, and no site's
    place = place_of(bare)
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["thresholds_from"] is None
    assert metrics["results"]["all"] is None
    assert metrics["localization"] == {}
    (point,) = metrics["operating_points"]
    assert "there are no calibration scans" in point["rule"]
    page = (place / "report.html").read_text()
    for words in ("All 2 labelled test scans are abnormal", "No threshold is locked", "Where the lesion is cannot be"):
        assert sum(words in note for note in metrics["notes"]) == 1
        assert words in page


def test_its_own_calibration_scans_set_the_thresholds_as_calibrate_does(
    few, rows, asked, places, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "report_of", lambda *arguments: None)
    healthy = rows[(rows["split"] == "test") & (rows["label"] == "0")]
    ill = rows[(rows["split"] == "test") & (rows["label"] == "1")]
    cohort = pd.concat([healthy.assign(split="calibration"), ill])
    assert evaluate.main(asked(few, cohort, "false_positive_rate=0.5", "detector=pca")) == 0
    place = place_of(few)
    metrics = json.loads((place / "metrics.json").read_text())
    assert metrics["thresholds_from"] == place.name
    assert any(f"2 calibration scans of this cohort, phantom ({place.name})" in note for note in metrics["notes"])
    write_manifest(healthy, tmp_path / "healthy.csv")
    site = [f"run={few.name}", *places, "detector=pca", "site=there", f"manifest={tmp_path}/healthy.csv"]
    assert calibrate.main([*site, "false_positive_rate=0.5", f"out={tmp_path}/out"]) == 0
    made = json.loads((few / "pca" / "fit" / "calibration" / "there.json").read_text())
    point = metrics["operating_points"][0]
    assert point["score"] == made["score"]
    assert point["threshold"] == pytest.approx(made["threshold"], rel=1e-4)


def test_scans_that_the_run_has_learned_from_are_refused(few, rows, asked, capsys):
    train = rows[rows["split"] == "train"].iloc[:1]
    leak = train.assign(scan_id="renamed", subject_id="somebody", split="test")
    assert evaluate.main(asked(few, pd.concat([leak, rows[rows["split"] == "test"]]))) == 2
    refused(capsys, f"renamed = {train['scan_id'].iloc[0]} (train)", "leave them out")
    same = asked(few, train)[:3]  # without the cohort: run and places
    assert calibrate.main([*same, "site=there", f"scans=[{train['image'].iloc[0]}]"]) == 2
    refused(capsys, f"= {train['scan_id'].iloc[0]} (train)", "leave them out")


def test_a_model_that_was_trained_on_has_no_thresholds(few, rows, places, tmp_path, capsys):
    """Thresholds are those of the weights that were evaluated, not of what the folder holds now."""
    more = few.parent / "more"
    shutil.copytree(few, more)
    path = choose_trained(more, None).folder.model
    stored = torch.load(path, weights_only=True)
    next(v for v in stored["state"].values() if v.is_floating_point()).mul_(1.01)
    torch.save(stored, path)
    scan = rows[rows["split"] == "test"]["image"].iloc[0]
    common = ["run=more", *places, f"scans=[{scan}]", f"out={tmp_path}/out"]
    assert score.main(common) == 2
    refused(capsys, "holds thresholds of another model", "anomaly3d.evaluate")
    assert not (tmp_path / "out").exists()


def test_a_run_that_keeps_nothing_is_evaluated_first(few, rows, asked, capsys):
    new = few.parent / "new"
    shutil.copytree(few, new, ignore=shutil.ignore_patterns("evaluation*", "calibration"))
    assert evaluate.main(asked(new, rows[rows["split"] == "test"])) == 2
    refused(capsys, "anomaly3d.evaluate run=new detector=fanogan' first")


def test_a_cohort_without_test_scans_teaches_all_the_same(few, places):
    focus = choose_trained(few, None)
    choice = few / "fanogan" / "finetune" / "calibration" / "choice.json"
    before = choice.read_text()
    choice.unlink()
    prepared = prepared_of(focus, Path(places[0].split("=")[1]))
    prepared = replace(prepared, table=prepared.table[prepared.table["split"] != "test"])
    trainer = yaml.safe_load((Path(CONF) / "trainer" / "auto.yaml").read_text())
    assert run.evaluate_run(few, focus, prepared, Options(8, None, 0.1, 10.0, trainer, 1)) is None
    assert choice.read_text() == before


def test_the_runs_own_cohort_by_name_is_its_own_evaluation(few, places, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "evaluate_run", lambda *arguments: asked.append(arguments))
    cohort = choose_trained(few, None).lineage["cohort"]
    manifest = Path(places[0].split("=")[1]) / "raw" / cohort / "manifest.csv"
    named = ["dataset=manifest", f"dataset.manifest={manifest}"]
    assert evaluate.main([f"run={few.name}", *places, *named, "logger=none", "controls=[]"]) == 0
    ((folder, focus, prepared, _),) = asked
    assert folder == few
    assert prepared.folder.name == focus.lineage["prepared"]


def test_what_the_layer_keeps_of_the_runs_own_evaluation_is_said(ncct):
    """Only what was asked for in vain."""
    healthy = Healthy(0, np.zeros(()), {}, {}, {}, densest=(90 - 40) / 60)
    learned = Learned(healthy, {}, {}, "total", "config", [])

    def notes(by_age, densest_hu):
        return layer_kept(learned, Options(1, None, 0.1, 1.0, {}, 1, by_age, densest_hu), ncct)

    assert notes(False, 90) == []
    assert ["age" in note for note in notes(True, 90)] == [True]
    assert ["dense" in note for note in notes(False, 80)] == [True]
    assert len(notes(True, None)) == 2
