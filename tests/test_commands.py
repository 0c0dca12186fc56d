"""The four commands as a user types them, on one tiny run that all tests share."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from anomaly3d import calibrate, compare, dashboard, evaluate, prepare, score, train
from anomaly3d.detectors.controls import CONTROLS
from anomaly3d.evaluation.callbacks import read_scores
from anomaly3d.files import sha256
from tests.conftest import TINY, counts

ROOT = Path(__file__).parents[1]


def refused(capsys, *words):
    """The last error is one line with these words and there is no traceback."""
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0]


def test_a_run_has_all_its_files(tiny_run):
    for phase in ("gan", "encoder", "finetune"):
        assert (tiny_run / phase / "model.pt").exists()
        lineage = json.loads((tiny_run / phase / "lineage.json").read_text())
        assert lineage["finished"]
    assert lineage["parent_sha256"] is not None
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    for name in ("all", "encoder_only", *CONTROLS):
        entry = metrics["auc"][name]
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
        assert (entry["n_normal"], entry["n_abnormal"]) == (2, 3)
    page = (tiny_run / "evaluation" / "report.html").read_text()
    assert "oracle" in page.lower()


def test_a_detector_of_one_stage_is_fitted_and_evaluated(tiny_run, places, capsys):
    arguments = ["detector=pca", "run=tiny", *places]
    assert evaluate.main(arguments) == 2
    refused(capsys, "+phase=fit", "detector=pca")
    assert train.main(["+phase=fit", *arguments, *TINY[:5], "workers=1"]) == 0
    assert evaluate.main(arguments) == 0
    alone = json.loads((tiny_run / "pca" / "evaluation" / "metrics.json").read_text())["auc"]
    beside = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())["auc"]
    assert alone["all"] == beside["pca"]
    assert "pca" not in alone
    capsys.readouterr()
    assert train.main(["+phase=fit", *arguments, *TINY[:5], "workers=1"]) == 0
    assert "overwrite=true" in capsys.readouterr().out


def test_the_supervised_control_is_fitted_to_labelled_scans(places, tmp_path, monkeypatch):
    monkeypatch.setattr("anomaly3d.detectors.supervised.EPOCHS", 1)
    monkeypatch.setattr("anomaly3d.detectors.supervised.BATCH", 2)
    cohort = counts(train=3, validation=1, test_normal=1, test_lesion=1, labelled_normal=2, labelled_lesion=2)
    small = [cohort, *(o for o in TINY[:4] if "counts" not in o), "dataset.name=labelled", "workers=2"]
    assert train.main(["+phase=fit", "detector=supervised", "run=upper", *places, *small]) == 0
    assert evaluate.main(["detector=supervised", "run=upper", *places, "logger=none"]) == 0
    metrics = json.loads((Path(places[1].split("=")[1]) / "upper/supervised/evaluation/metrics.json").read_text())
    assert set(metrics["auc"]) >= {"all", "pca"}


def test_phases_and_detectors_that_do_not_belong_together_are_refused(places, capsys):
    assert train.main(["+phase=fit", "run=wrong", *places]) == 2
    refused(capsys, "fanogan", "detector=pca")
    assert train.main(["+phase=gan", "detector=pca", "run=wrong", *places]) == 2
    refused(capsys, "+phase=fit")


def test_the_choice_of_score_and_its_threshold_are_kept_with_the_model(tiny_run):
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    stored = json.loads((tiny_run / "finetune" / "calibration" / "own.json").read_text())
    ranking = metrics["score"]["pseudo_auc"]
    assert stored["score"] == metrics["score"]["chosen"] == "total"  # two validation scans prove no other better
    assert len(stored["scores"]) == 1
    assert stored["threshold"] is None  # one calibration scan allows no threshold at 10 %
    table = read_scores(tiny_run / "evaluation" / "rescored.csv")
    assert set(ranking) <= set(table)
    assert metrics["operating_points"][0]["rule"].startswith("locked")
    assert set(metrics["localization"]["lesion_mask"]) == {"residual", "standardised"}
    assert metrics["localization"]["healthy_false_parts"]["residual"]["n_scans"] == 2
    assert (table["lesion_ml"][table["label"] == "1"].astype(float) > 0.2).all()


def test_a_second_evaluation_runs_no_network(tiny_run, places, capsys):
    before = (tiny_run / "evaluation" / "metrics.json").read_text()
    maps = {p: p.stat().st_mtime_ns for p in (tiny_run / "evaluation").rglob("reconstruction/*")}
    assert len(maps) >= 14
    assert evaluate.main(["run=tiny", *places, "score=masked", "false_positive_rate=0.5"]) == 0
    assert maps == {p: p.stat().st_mtime_ns for p in maps}
    stored = json.loads((tiny_run / "finetune" / "calibration" / "own.json").read_text())
    assert stored["score"] == "masked"
    assert np.isfinite(stored["threshold"])
    assert evaluate.main(["run=tiny", *places]) == 0
    assert (tiny_run / "evaluation" / "metrics.json").read_text() == before


def test_test_scans_do_not_reach_training(tiny_run, places, tmp_path):
    """Phases 2 and 3 without any test row give the very weights and the very choice of checkpoint."""
    raw = next((tiny_run.parents[1] / "data" / "raw").glob("phantom-*/manifest.csv"))
    table = pd.read_csv(raw, dtype=str, keep_default_na=False)
    for column in ("image", "lesion_mask", "mass_effect_mask"):
        table[column] = [str(raw.parent / p) if p else "" for p in table[column]]
    digests = []
    for name, rows in (("with", table), ("without", table[table["split"] != "test"])):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        arguments = ["dataset=manifest", f"dataset.manifest={tmp_path}/{name}.csv", f"data_dir={tmp_path}/{name}"]
        tiny = [o for o in TINY if not o.startswith("dataset.")]
        arguments += [*tiny, f"runs_dir={tmp_path}/{name}", "logger=none", "trainer.precision=32-true"]
        assert train.main(["-m", "+phase=gan,encoder,finetune", *arguments]) == 0
        digests.append([sha256(tmp_path / name / "demo" / p / "model.pt") for p in ("gan", "encoder", "finetune")])
    assert digests[0] == digests[1]


def test_scores_are_distances_of_the_test_scans_in_manifest_order(tiny_run):
    scores = read_scores(tiny_run / "evaluation" / "scores.csv")
    assert len(scores) == 5
    np.testing.assert_allclose(scores["total"], scores["image"] + scores["feature"])
    assert list(scores["label"]) == ["0", "0", "1", "1", "1"]


def test_critic_is_the_same_in_all_phases_and_generator_only_until_finetuning(tiny_run):
    def weights(phase, network):
        state = torch.load(tiny_run / phase / "model.pt", weights_only=True)["state"]
        return {k: v for k, v in state.items() if k.startswith(network)}

    def same(a, b):
        return all(torch.equal(v, b[k]) for k, v in a.items())

    assert same(weights("gan", "critic"), weights("finetune", "critic"))
    assert same(weights("gan", "generator"), weights("encoder", "generator"))
    assert not same(weights("gan", "generator"), weights("finetune", "generator"))
    assert not same(weights("gan", "encoder"), weights("encoder", "encoder"))


def test_a_finished_phase_is_left_alone(tiny_run, places, capsys):
    before = (tiny_run / "gan" / "model.pt").stat().st_mtime_ns
    assert train.main(["+phase=gan", "run=tiny", *places, *TINY]) == 0
    assert "overwrite=true" in capsys.readouterr().out
    assert train.main(["+phase=gan", "run=tiny", *places, *TINY, "seed=5"]) == 2
    refused(capsys, "seed", "overwrite=true")
    assert (tiny_run / "gan" / "model.pt").stat().st_mtime_ns == before


def test_more_steps_resume_and_give_what_one_go_gives(tiny_run, places):
    """4 + 4 steps equal 8 steps bit for bit in float32."""
    exact = [*places, *TINY, "trainer.precision=32-true", "logger=none", "+phase=gan"]
    assert train.main([*exact, "run=halves"]) == 0
    assert train.main([*exact, "run=halves", "++phase.steps=8"]) == 0
    assert train.main([*exact, "run=whole", "++phase.steps=8"]) == 0
    states = [
        torch.load(tiny_run.parent / r / "gan" / "model.pt", weights_only=True)["state"] for r in ("halves", "whole")
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


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
            "encoder/test_auc_all",
            "encoder/test_roc",
        ],
        "finetune": [
            "finetune/image",
            "finetune/health_gap",
            "model_sha256",
            "finetune/val_loss",
            "finetune/test_pr",
            "finetune/reconstructions",
        ],
    }
    keys["evaluation"] = ["evaluation/auc.all.value", "evaluation/roc", "evaluation/cases", "evaluation/scans"]
    whole = "\n".join(texts)
    for phase, wanted in keys.items():
        text = next(t for t in texts if f"{phase}/" in t)
        for key in [*wanted, "config_hash", "parent_sha256"]:
            assert key in text, key
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
    keys = [key for _, panels in dashboard.LAYOUT for _, names in panels for key in names]
    for key in [*keys, *dashboard.SCALARS, *(f"evaluation/{name}" for name in dashboard.EVALUATION)]:
        assert key in logged, key


def test_no_phase_is_answered_by_one_sentence(places, capsys):
    assert train.main(places) == 2
    refused(capsys, "+phase=gan", "+phase=encoder", "+phase=finetune")


def test_an_unknown_phase_is_answered_by_one_sentence(places, capsys):
    assert train.main(["+phase=gam", *places]) == 2
    refused(capsys, "phase/gam", "encoder", "finetune", "gan")


def test_a_missing_parent_is_named_before_any_work(places, tmp_path, capsys):
    assert train.main(["+phase=encoder", f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]) == 2
    refused(capsys, "+phase=gan", "demo")
    assert not (tmp_path / "data").exists()


def test_a_retrained_parent_makes_its_children_stale(tiny_run, places, tmp_path, capsys):
    run = tiny_run.parent / "stale"
    shutil.copytree(tiny_run, run)
    arguments = ["run=stale", *places, *TINY, "logger=none"]
    assert train.main(["+phase=gan", *arguments, "overwrite=true", "seed=3"]) == 0
    capsys.readouterr()
    assert train.main(["+phase=encoder", *arguments]) == 2
    refused(capsys, "overwrite=true")


def test_scans_that_moved_between_splits_are_noticed(tiny_run, places, capsys):
    manifest = next((tiny_run.parents[1] / "data").glob("phantom-*/*/manifest.csv"))
    before = manifest.read_text()
    try:
        manifest.write_text(before.replace(",validation,", ",train,", 1))
        assert evaluate.main(["run=tiny", *places]) == 2
    finally:
        manifest.write_text(before)
    refused(capsys, "splits")


def test_a_parent_of_another_model_is_refused(tiny_run, places, capsys):
    arguments = ["+phase=encoder", "run=other", f"parent={tiny_run}/gan", *places, *TINY, "model.latent=20"]
    assert train.main(arguments) == 2
    refused(capsys, "model.latent")


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


@pytest.mark.parametrize("override", ["score=tootal", "false_positive_rate=10", "voxel_false_positive_rate=1.5"])
def test_evaluation_mistakes_name_the_key(tiny_run, places, capsys, override):
    assert evaluate.main(["run=tiny", *places, "logger=none", override]) == 2
    refused(capsys, override.split("=")[0])


def test_a_checkpoint_is_not_kept_for_being_the_worst(tiny_run, places, capsys):
    arguments = ["+phase=encoder", "run=tiny", *places, *TINY, "++phase.monitor=encoder/val_pseudo_auc"]
    assert train.main(arguments) == 2
    refused(capsys, "phase.mode=min", "mode max")


def test_a_run_may_be_named_by_a_number(places, capsys):
    assert evaluate.main(["run=2024", *places]) == 2
    refused(capsys, "2024", "make demo")


def test_manifest_mistakes_come_before_any_work(tmp_path, capsys):
    table = pd.DataFrame({"scan_id": ["a", "a"], "subject_id": "p", "image": "x.nii", "label": "0", "split": "train"})
    table.to_csv(tmp_path / "manifest.csv", index=False)
    arguments = ["dataset=manifest", f"dataset.manifest={tmp_path}/manifest.csv", f"data_dir={tmp_path}/data"]
    assert prepare.main(arguments) == 2
    refused(capsys, "duplicate scan_id a", "row 2, 3", "x.nii")
    assert not (tmp_path / "data").exists()


@pytest.fixture
def bad_and_good(tiny_run, tmp_path):
    """A folder with one phantom, one text file that calls itself NIfTI and one cut file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    phantom = sorted(tiny_run.parents[1].glob("data/raw/*/ct/subdural*-0001.nii.gz"))[0]
    shutil.copy(phantom, folder / "good.nii.gz")
    (folder / "text.nii").write_text("hello")
    (folder / "cut.nii.gz").write_bytes(phantom.read_bytes()[:5000])
    return folder


def test_scoring_new_scans_writes_maps_on_their_own_grid(tiny_run, places, bad_and_good, tmp_path, capsys):
    out = tmp_path / "out"
    assert score.main(["run=tiny", f"root={bad_and_good}", f"out={out}", *places]) == 3
    table = pd.read_csv(out / "scores.csv").set_index("scan_id")
    assert list(table["verdict"]) == ["unreadable", "accepted", "unreadable"]
    assert "cut short" in table["reasons"]["cut"]
    original = nib.load(bad_and_good / "good.nii.gz")
    maps = {n: nib.load(out / "good" / f"{n}.nii.gz") for n in ("input", "reconstruction", "residual", "brain_mask")}
    for image in maps.values():
        assert image.shape == original.shape
        np.testing.assert_allclose(image.affine, original.affine)
    brain = maps["brain_mask"].get_fdata() > 0
    ml = brain.sum() * abs(np.linalg.det(original.affine)) / 1000
    assert 900 < ml < 2200
    hu = np.clip(original.get_fdata(), -20, 100)
    back = maps["input"].get_fdata()
    inner = brain & (hu < 90)
    assert np.corrcoef(hu[inner], back[inner])[0, 1] > 0.3  # the same head at the same place
    difference = maps["input"].get_fdata() - maps["reconstruction"].get_fdata() - maps["residual"].get_fdata()
    assert np.abs(difference[brain]).max() <= 2  # HU, rounding


def test_a_site_gets_a_threshold_of_its_own(tiny_run, places, bad_and_good, tmp_path, capsys):
    arguments = ["run=tiny", *places]
    assert calibrate.main([*arguments, f"root={bad_and_good}"]) == 2
    refused(capsys, "site=NAME")
    assert score.main([*arguments, f"root={bad_and_good}", "site=utrecht"]) == 2
    refused(capsys, "anomaly3d.calibrate site=utrecht")
    new = [*arguments, f"root={bad_and_good}", "site=utrecht", f"out={tmp_path}/out"]
    assert calibrate.main([*new, "false_positive_rate=0.5"]) == 3  # two scans of the folder cannot be read
    stored = json.loads((tiny_run / "finetune" / "calibration" / "utrecht.json").read_text())
    assert len(stored["scores"]) == 1
    assert score.main(new) == 3
    row = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("scan_id").loc["good"]
    assert row["score"] == pytest.approx(stored["scores"][0])
    assert row["p_value"] == 1
    assert not row["flagged"]


def test_runs_are_compared_on_the_same_scans(tiny_run, places, tmp_path, capsys):
    out = tmp_path / "compared.json"
    named = "detectors={ours: [tiny], encoder: [tiny/evaluation/encoder_only], mirror: [tiny/evaluation/mirror]}"
    assert compare.main([named, places[1], f"out={out}"]) == 0
    found = json.loads(out.read_text())
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    assert found["auc"]["ours"]["value"] == pytest.approx(metrics["auc"]["all"]["value"])
    delong = found["difference"]["mirror"]["delong"]
    assert delong["value"] == pytest.approx(metrics["compared"]["mirror"]["value"])
    assert set(found["difference"]) == {"encoder", "mirror"}
    capsys.readouterr()
    assert compare.main(["detectors={a: [nobody]}", places[1]]) == 2
    refused(capsys, "run=nobody")
    assert compare.main([places[1]]) == 2
    refused(capsys, "detectors=")
    assert compare.main([named, places[1], "score=masked"]) == 2
    refused(capsys, "masked", "encoder_only")


def test_prepare_goes_on_after_a_bad_scan_and_says_so(bad_and_good, tmp_path, capsys):
    arguments = ["dataset=folder", f"dataset.root={bad_and_good}", f"data_dir={tmp_path}/data", "workers=1"]
    arguments.append("preprocessing.registration_enough=0")
    assert prepare.main(arguments) == 3
    assert "text: unreadable: not a NIfTI image" in capsys.readouterr().out
    quality = pd.read_csv(next(tmp_path.glob("data/folder-*/*/quality.csv"))).set_index("scan_id")
    assert quality["verdict"]["good"] == "accepted"
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("data/folder-*/*/image/*")}
    assert len(files) == 1
    assert prepare.main(arguments) == 3  # a second call does nothing anew
    assert {p: p.stat().st_mtime_ns for p in files} == files


def test_a_killed_prepare_goes_on_and_gives_the_same_bytes(tiny_run, tmp_path):
    data = tiny_run.parents[1] / "data"
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        shutil.copy(next(data.glob(f"raw/*/ct/train-{i:04d}.nii.gz")), folder)
    arguments = ["dataset=folder", f"dataset.root={folder}", f"data_dir={tmp_path}/data", "workers=1"]
    arguments += ["preprocessing.resolution=32", "preprocessing.registration_enough=0"]
    with subprocess.Popen(
        [sys.executable, "-m", "anomaly3d.prepare", *arguments], stdout=subprocess.DEVNULL
    ) as process:
        for _ in range(600):
            if list(tmp_path.glob("data/folder-*/*/verdicts/*.json")) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
    done = list(tmp_path.glob("data/folder-*/*/verdicts/train-*.json"))
    assert 1 <= len(done) <= 3
    assert prepare.main(arguments) == 0
    for i in range(3):
        name = f"image/train-{i:04d}.nii.gz"
        (made,) = tmp_path.glob(f"data/folder-*/*/{name}")
        assert made.read_bytes() == next(data.glob(f"phantom-*/*/{name}")).read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_one_sentence_and_nothing_half_written(tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this machine does not allow mounting a tmpfs")
    try:
        code = prepare.main([counts(train=6), "dataset.matrix=128", f"data_dir={small}", "workers=1"])
        refused(capsys, "disk is full")
        assert code == 2
        for path in small.rglob("*.nii.gz"):
            nib.load(path).get_fdata()  # every file that is there is whole
        assert not [p for p in small.rglob("*") if p.name.startswith(".")]
    finally:
        subprocess.run(["umount", str(small)], check=True)


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
    order = re.findall(r"anomaly3d\.(\w+)(?: \+phase=(\w+))?", text)
    assert order == [("prepare", ""), ("train", "gan"), ("train", "encoder"), ("train", "finetune"), ("evaluate", "")]
