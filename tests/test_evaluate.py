"""``anomaly3d.evaluate`` and ``anomaly3d.compare`` as a user types them, on the tiny run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly3d import calibrate, compare, evaluate, score, train
from anomaly3d.evaluation.metrics import auc_of, ranked
from anomaly3d.scoring import anomaly_maps
from anomaly3d.scoring.anomaly_maps import Healthy
from anomaly3d.scoring.calibration import OWN, healthy_file
from anomaly3d.scoring.writer import read_scores
from anomaly3d.system.files import locked
from tests.conftest import TINY, refused

CONTROLS = ("bright_volume", "mean_volume", "zscore", "mirror", "pca")


def test_a_run_has_all_its_files(tiny_run):
    for phase in ("gan", "encoder", "finetune"):
        folder = tiny_run / "fanogan" / phase
        assert (folder / "model.pt").exists()
        lineage = json.loads((folder / "lineage.json").read_text())
        assert lineage["finished"]
    assert lineage["parent_sha256"] is not None
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    results = metrics["results"]
    assert set(results["other"]) == {"fanogan/encoder", *CONTROLS}
    for found in (results["all"], *results["other"].values()):
        entry = found["auc"]
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
        assert (entry["n_normal"], entry["n_abnormal"]) == (2, 3)
    page = (tiny_run / "evaluation" / "report.html").read_text()
    assert "oracle" in page.lower()
    assert "Validation scans are of 2 subjects: to choose a score in place of A(x) takes 10." in page


def test_any_detector_of_a_run_is_evaluated_scored_and_has_a_threshold(
    tiny_run, places, bad_and_good, tmp_path, capsys
):
    """The report is about another detector of the same run, f-AnoGAN stands beside it, and new scans go through it."""
    run = tiny_run.parent / "other"  # a copy: other tests look at the tiny run
    shutil.copytree(tiny_run, run)
    arguments = ["detector=pca", "run=other", *places]
    assert evaluate.main(["detector=vae", *arguments[1:]]) == 2
    refused(capsys, "anomaly3d.train detector=vae")
    before = json.loads((run / "evaluation" / "metrics.json").read_text())["results"]
    assert evaluate.main([*arguments, "logger=none"]) == 0
    after = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert after["focus"] == "pca"
    assert after["results"]["all"] == before["other"]["pca"]
    assert after["results"]["other"]["fanogan"] == before["all"]
    stored = json.loads((run / "pca" / "fit" / "calibration" / "own.json").read_text())
    scan, out = bad_and_good / "good.nii.gz", tmp_path / "out"
    assert score.main([*arguments, f"scans=[{scan}]", f"out={out}"]) == 0
    row = pd.read_csv(out / "scores.csv").iloc[0]
    assert row["score"] == row[stored["score"]]
    assert (out / "good" / "residual.nii.gz").exists()
    assert calibrate.main([*arguments, f"scans=[{scan}]", "site=here", f"out={out}"]) == 0
    here = json.loads((run / "pca" / "fit" / "calibration" / "here.json").read_text())
    assert here["scores"] == pytest.approx([row["score"]])


def test_a_control_is_fitted_once_a_run(tiny_run, places, capsys):
    before = (tiny_run / "zscore" / "fit" / "model.pt").stat().st_mtime_ns
    assert evaluate.main(["run=tiny", *places, "logger=none"]) == 0
    assert "zscore: at once" not in capsys.readouterr().out
    assert (tiny_run / "zscore" / "fit" / "model.pt").stat().st_mtime_ns == before
    arguments = ["+phase=fit", "detector=zscore", "run=tiny", *places, *TINY[:6], "workers=1"]
    assert train.main(arguments) == 0  # and so it is for the one who trains it by name
    assert "overwrite=true" in capsys.readouterr().out


def test_the_choice_of_score_and_its_threshold_are_kept_with_the_model(tiny_run):
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    stored = json.loads((tiny_run / "fanogan" / "finetune" / "calibration" / "own.json").read_text())
    ranking = metrics["score"]["pseudo_auc"]
    assert stored["score"] == metrics["score"]["chosen"] == "total"  # two validation scans prove no other better
    assert len(stored["scores"]) == 1
    assert stored["threshold"] is None  # one calibration scan allows no threshold at 10 %
    table = read_scores(tiny_run / "evaluation" / "fanogan" / "rescored.csv")
    assert set(ranking) <= set(table)
    assert metrics["operating_points"][0]["rule"].startswith("locked")
    assert set(metrics["localization"]["lesion_mask"]) == {"residual", "standardised"}
    assert metrics["localization"]["healthy_false_parts"]["residual"]["n_scans"] == 2
    assert (table["lesion_ml"][table["label"] == "1"].astype(float) > 0.2).all()
    assert json.loads((tiny_run / "fanogan" / "finetune" / "calibration" / "inputs.json").read_text()) == {}
    assert (table["unlike_training"] == "").all()  # four training scans do not say what is usual


@pytest.fixture
def alone(tiny_run, places):
    """A copy of the tiny run without controls, and what to type to evaluate it: quicker, and others see no change."""
    run = tiny_run.parent / "alone"
    controls = ("bright_volume", "mean_volume", "zscore", "mirror", "pca")
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("wandb", *controls))
    yield run, ["run=alone", *places, "controls=[]", "logger=none"]
    shutil.rmtree(run)


def test_two_evaluations_of_one_run_at_once_are_one_too_many(tiny_run, places, capsys):
    with locked(tiny_run / ".evaluate.lock", "it"):
        assert evaluate.main(["run=tiny", *places]) == 2
    refused(capsys, f"another process is at work on {tiny_run}")


def test_volumes_that_were_removed_are_made_again(tiny_run, alone):
    """Without them scores of the layer, and the choice between them, would silently be others."""
    run, typed = alone
    gone = [
        run / "evaluation" / "fanogan" / "reconstruction",
        run / "evaluation" / "fanogan" / "pseudo" / "reconstruction",
    ]
    shutil.rmtree(gone[0])
    next(gone[1].glob("*.nii.gz")).unlink()
    assert evaluate.main(typed) == 0
    before, after = (json.loads((r / "evaluation" / "metrics.json").read_text()) for r in (tiny_run, run))
    for part in ("score", "localization", "operating_points"):
        assert after[part] == before[part], part
    assert len(list(gone[0].glob("*.nii.gz"))) == 5


def test_figures_of_an_earlier_evaluation_do_not_stay(alone):
    run, typed = alone
    old = run / "evaluation" / "figures" / "earlier.png"
    old.write_bytes(b"")
    assert evaluate.main(typed) == 0
    assert not old.exists()
    assert (old.parent / "roc.png").exists()


def test_a_second_evaluation_runs_no_network(tiny_run, alone):
    run, typed = alone
    maps = {p: p.stat().st_mtime_ns for p in (run / "evaluation").rglob("reconstruction/*")}
    assert len(maps) >= 14
    assert evaluate.main([*typed, "score=masked", "false_positive_rate=0.5"]) == 0
    assert maps == {p: p.stat().st_mtime_ns for p in maps}
    stored = json.loads((run / "fanogan" / "finetune" / "calibration" / "own.json").read_text())
    assert stored["score"] == "masked"
    assert np.isfinite(stored["threshold"])
    assert evaluate.main(typed) == 0
    before, after = (json.loads((r / "evaluation" / "metrics.json").read_text()) for r in (tiny_run, run))
    assert after["results"]["all"] == before["results"]["all"]
    for part in ("score", "localization", "operating_points"):
        assert after[part] == before[part], part


def test_the_spread_follows_age_where_it_is_asked_to(alone, places, bad_and_good, tmp_path, monkeypatch, capsys):
    """Two validation heads have to do, which is too few but for this test."""
    run, typed = alone
    assert evaluate.main([*typed, "by_age=true"]) == 2
    refused(capsys, "by_age=true takes 20 healthy people of different known ages")
    monkeypatch.setattr(anomaly_maps, "AGED", 2)
    assert evaluate.main([*typed, "by_age=true", "score=standardised"]) == 0
    ages = read_scores(run / "evaluation" / "fanogan" / "validation" / "scores.csv")["age"].astype(float)
    ageing = Healthy.load(healthy_file(run / "fanogan" / "finetune", OWN)).ageing["residual"]
    assert (ageing.mean, ageing.spread) == pytest.approx((ages.mean(), ages.std(ddof=0)))
    assert "The healthy spread follows age." in (run / "evaluation" / "report.html").read_text()
    scan = bad_and_good / "good.nii.gz"
    (tmp_path / "known.csv").write_text(f"scan_id,subject_id,image,label,split,age\nold,p,{scan},0,test,80\n")
    out = f"out={tmp_path}/out"
    assert score.main(["run=alone", *places, f"scans=[{scan}]", out]) == 0
    assert "1 of these scans have none (the first is good)" in capsys.readouterr().out
    assert score.main(["run=alone", *places, f"manifest={tmp_path}/known.csv", out]) == 0
    table = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("scan_id")
    assert np.isnan(table["p_value"]["good"])
    assert table["p_value"]["old"] > 0
    assert table["score"]["old"] == pytest.approx(table["score"]["good"] / ageing.growth(80) ** 2, rel=1e-4)
    assert calibrate.main(["run=alone", *places, f"scans=[{scan}]", "site=ageless"]) == 2
    refused(capsys, "1 of 1 calibration scans have none (the first is good)")
    assert evaluate.main(typed) == 0
    assert Healthy.load(healthy_file(run / "fanogan" / "finetune", OWN)).ageing is None


def test_the_same_evaluation_gives_the_same_bytes(tiny_run, places):
    """Page and figures: no date of today, no random ids."""
    folder = tiny_run / "evaluation"
    files = [folder / "report.html", *(folder / "figures").iterdir()]
    before = {path: path.read_bytes() for path in files}
    assert evaluate.main(["run=tiny", *places, "logger=none"]) == 0
    assert [path.name for path in files if path.read_bytes() != before[path]] == []


def test_the_report_says_what_was_used_and_how_it_was_made(tiny_run):
    page = (tiny_run / "evaluation" / "report.html").read_text()
    flow = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())["flow"]
    assert flow["train"] == {"scans": 4, "subjects": 4, "accepted": 4, "rejected": 0, "unreadable": 0, "used": 4}
    assert flow["test"]["scans"] == 5
    assert "<tr><td>train</td><td>4</td><td>4</td><td>4</td>" in page
    for phase in ("gan", "encoder", "finetune"):
        lineage = json.loads((tiny_run / "fanogan" / phase / "lineage.json").read_text())
        assert f"Phase {phase}: {lineage['made_with']['date'][:10]}" in page
    assert f"torch\n{lineage['made_with']['torch']}, lightning" in page
    assert (tiny_run / "evaluation" / "figures" / "training.svg").exists()
    assert "Trivial" not in page


def test_scores_are_distances_of_the_test_scans_in_manifest_order(tiny_run):
    scores = read_scores(tiny_run / "evaluation" / "fanogan" / "scores.csv")
    assert len(scores) == 5
    np.testing.assert_allclose(scores["total"], scores["image"] + scores["feature"])
    assert list(scores["label"]) == ["0", "0", "1", "1", "1"]


def test_a_manifest_that_was_edited_since_is_noticed(tiny_run, places, tmp_path, capsys):
    """Another label, a mask more, a scan more: what was prepared says otherwise, and nothing is written."""
    run = tiny_run.parent / "edited"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("evaluation"))
    file = run / "fanogan" / "finetune" / "lineage.json"
    lineage = json.loads(file.read_text())
    raw = tiny_run.parents[1] / "data" / "raw" / lineage["cohort"] / "manifest.csv"
    manifest = tmp_path / "manifest.csv"
    lineage["settings"]["dataset"]["manifest"] = str(manifest)
    file.write_text(json.dumps(lineage))
    table = pd.read_csv(raw, dtype=str, keep_default_na=False)
    for column in ("image", "lesion_mask", "mass_effect_mask"):
        table[column] = [str(raw.parent / p) if p else "" for p in table[column]]
    normal, ill = (table[(table["split"] == "test") & (table["label"] == label)].index[0] for label in "01")
    for column, row, value, words in (
        ("label", normal, "", f"label of {table['scan_id'][normal]} was 0, is empty"),
        ("age", normal, "17", f"age of {table['scan_id'][normal]} was"),
        ("lesion_mask", ill, "", f"lesion_mask of {table['scan_id'][ill]} is gone"),
        ("scan_id", ill, "another", "another is new; "),
    ):
        changed = table.copy()
        changed.loc[row, column] = value
        changed.to_csv(manifest, index=False)
        assert evaluate.main(["run=edited", *places]) == 2
        refused(capsys, "was edited after its scans were prepared", words, "anomaly3d.prepare dataset=manifest")
    assert not (run / "evaluation").exists()
    changed = table.copy()
    changed.loc[[normal, ill], "image"] = table.loc[[ill, normal], "image"].to_numpy()
    changed.to_csv(manifest, index=False)
    assert evaluate.main(["run=edited", *places]) == 2
    refused(capsys, "was edited after its scans were prepared", f"files of {table['scan_id'][normal]} are others")
    table["image"] = [f"/archived/{Path(p).name}" for p in table["image"]]
    table.to_csv(manifest, index=False)
    assert evaluate.main(["run=edited", *places, "controls=[]", "images=0", "logger=none"]) == 0


def test_scans_that_moved_between_splits_are_noticed(tiny_run, places, capsys):
    lineage = json.loads((tiny_run / "fanogan" / "finetune" / "lineage.json").read_text())
    manifest = tiny_run.parents[1] / "data" / lineage["cohort"] / lineage["prepared"] / "manifest.csv"
    before = manifest.read_text()
    try:
        manifest.write_text(before.replace(",validation,", ",train,", 1))
        assert evaluate.main(["run=tiny", *places]) == 2
    finally:
        manifest.write_text(before)
    refused(capsys, "splits")


@pytest.mark.parametrize(
    "override",
    [
        *("by_age=perhaps", "densest_hu=bone", "densest_hu=20", "score=tootal", "false_positive_rate=10", "batch=x"),
        *("voxel_false_alarm_ml=0", "voxel_false_alarm_ml=5000"),
    ],
)
def test_evaluation_mistakes_name_the_key(tiny_run, places, capsys, override):
    assert evaluate.main(["run=tiny", *places, "logger=none", override]) == 2
    refused(capsys, override.split("=")[0])


def test_runs_are_compared_on_the_same_scans(tiny_run, places, tmp_path, capsys):
    out = tmp_path / "compared.json"
    named = "detectors={ours: [tiny], encoder: [tiny/fanogan/encoder], mirror: [tiny/mirror]}"
    assert compare.main([named, places[1], f"out={out}"]) == 0
    found = json.loads(out.read_text())
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    assert found["auc"]["ours"]["value"] == pytest.approx(metrics["results"]["all"]["auc"]["value"])
    delong = found["difference"]["mirror"]["delong"]
    assert delong["value"] == pytest.approx(metrics["compared"]["mirror"]["value"])
    assert set(found["difference"]) == {"encoder", "mirror"}
    capsys.readouterr()
    assert compare.main(["detectors={a: [nobody]}", places[1]]) == 2
    refused(capsys, "run=nobody")
    assert compare.main([places[1]]) == 2
    refused(capsys, "detectors=")
    for no_score in ("label", "site"):
        assert compare.main([named, places[1], f"score={no_score}"]) == 2
        refused(capsys, no_score, "tiny has total")
    assert compare.main([named, places[1], "score=masked", f"out={out}"]) == 0  # of the layer, and each has it
    mirror = ranked(read_scores(tiny_run / "evaluation" / "mirror" / "rescored.csv"))
    assert json.loads(out.read_text())["auc"]["mirror"]["value"] == pytest.approx(auc_of(mirror, "masked").value)
