"""``anomaly3d.export`` as a user types it, and the folder that it leaves, without the run."""

import hashlib
import json
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

import anomaly3d
from anomaly3d import export, score
from anomaly3d.bundle import networks
from anomaly3d.bundle.networks import Graph, write_graphs
from anomaly3d.bundle.write import copy_calibrations
from anomaly3d.detectors.base import build_detector, load_detector
from anomaly3d.errors import UserError
from anomaly3d.runs.exported import read_exported
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.manifest import read_manifest
from anomaly3d.scoring.calibration import OWN, calibration_folder, healthy_file, load_calibration
from anomaly3d.scoring.learned_from import keep_seen_of
from anomaly3d.scoring.writer import read_scores
from tests.conftest import detector_config, refused


@pytest.fixture(scope="module")
def folder(tiny_run, places, tmp_path_factory):
    """The tiny run, exported."""
    out = tmp_path_factory.mktemp("export") / "tiny-model"
    assert export.main(["run=tiny", *places, f"out={out}"]) == 0
    return out


@pytest.fixture
def scan(tiny_run):
    """A scan of the tiny run."""
    return sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]


def test_the_folder_scores_as_the_run_does(folder, tiny_run, places, scan, tmp_path, capsys):
    moved = tmp_path / "elsewhere" / "moved-model"  # and no run beside it
    shutil.copytree(folder, moved)
    common = [places[0], f"scans=[{scan}]"]
    assert score.main(["run=tiny", places[1], *common, f"out={tmp_path}/by-run"]) == 0
    assert score.main([f"model={moved}", f"runs_dir={tmp_path}/nowhere", *common]) == 0
    assert "of model moved-model" in capsys.readouterr().out
    places_of = tmp_path / "by-run", tmp_path / "nowhere" / "moved-model" / "scored"
    run, model = (pd.read_csv(place / "scores.csv") for place in places_of)
    assert list(run) == list(model)
    assert {"total", "score", "p_value", "flagged"} <= set(run)
    numbers = run.select_dtypes("number").columns
    np.testing.assert_allclose(model[numbers], run[numbers], rtol=1e-6)
    assert model["model"][0] == run["model"][0]
    name = next(place.name for place in places_of[0].iterdir() if (place / "standardised.nii.gz").exists())
    by_run, by_model = (nib.load(place / name / "standardised.nii.gz").get_fdata() for place in places_of)
    np.testing.assert_array_equal(by_run, by_model)
    result = anomaly3d.Scorer.from_folder(moved, data_dir=places[0].split("=")[1]).score(scan)
    assert result.p_value == pytest.approx(run["p_value"][0])


def test_a_file_that_was_changed_or_lost_is_refused_by_name(folder, scan, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    for name in ("reconstruct.onnx", "calibration/own.npz", "preprocessing.yaml"):
        whole = (broken / name).read_bytes()
        (broken / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=f"{broken / name} is not as it was exported"):
            read_exported(broken)
        (broken / name).unlink()
        with pytest.raises(UserError, match=f"{broken / name} is listed .* not there"):
            read_exported(broken)
        (broken / name).write_bytes(whole)
    assert read_exported(broken).name == "fanogan"
    with pytest.raises(UserError, match="holds no SHA256SUMS"):
        read_exported(tmp_path)
    with (broken / "model.safetensors").open("ab") as file:
        file.write(b"more")
    assert score.main([f"model={broken}", f"scans=[{scan}]", "run=demo"]) == 2
    refused(capsys, "model=... and run=... both name a detector")
    assert score.main([f"model={broken}", f"scans=[{scan}]", f"runs_dir={tmp_path}"]) == 2
    refused(capsys, str(broken / "model.safetensors"), "not as it was exported")


def test_both_graphs_take_any_batch_and_their_parity_is_what_the_card_says(folder, tiny_run):
    detector = load_detector(tiny_run / "fanogan" / "finetune" / "model.pt").eval()
    x = torch.rand(5, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    brain = (x > 0).to(torch.uint8)
    with torch.no_grad():
        wanted = detector.reconstruct(x).numpy()
        made = torch.export.load(folder / "reconstruct.pt2").module()(x, brain).numpy()
    session = onnxruntime.InferenceSession(folder / "reconstruct.onnx", providers=["CPUExecutionProvider"])
    (onnx,) = session.run(["reconstruction"], {"x": x.numpy(), "brain": brain.numpy()})
    card = (folder / "README.md").read_text()
    for name, found in (("pt2", made), ("onnx", onnx)):
        assert np.abs(found - wanted).max() < 1e-4
        said = re.search(rf"`reconstruct.{name}`: .* difference to the detector (\S+) on 10 (\w+) volumes", card)
        assert float(said[1]) < 1e-4
        assert said[2] == "random"  # the tiny run has seven healthy scans


def test_a_graph_that_differs_or_cannot_be_is_not_kept(tiny_run, tmp_path, monkeypatch):
    detector = load_detector(tiny_run / "pca" / "fit" / "model.pt")
    x = torch.rand(4, 1, 32, 32, 32) * 2 - 1
    brain = torch.ones_like(x, dtype=torch.uint8)
    (good,) = write_graphs(detector, x, brain, tmp_path, False)
    assert good.volumes == 4
    assert good.difference < 1e-6
    with zipfile.ZipFile(tmp_path / "reconstruct.pt2") as file:  # a program keeps what it was traced with
        kept = b"".join(map(file.read, file.namelist()))
    assert x[0].numpy().tobytes() not in kept
    assert x[1].numpy().tobytes() not in kept
    monkeypatch.setattr(networks, "run_torch", lambda path: lambda x, brain: x)
    (bad,) = write_graphs(detector, x, brain, tmp_path, False)
    assert "it differs by" in bad.reason
    assert not (tmp_path / "reconstruct.pt2").exists()
    twin = build_detector(detector_config("twin")["module"])
    assert write_graphs(twin, x, brain, tmp_path, False) == [Graph("reconstruct.pt2", reason="it also reads twin")]


def test_a_method_that_judges_the_brain_alone_does_so_in_its_graphs(tmp_path):
    """Around the brain nothing is predicted, also where a volume is not quite -1 there."""
    torch.manual_seed(0)
    detector = build_detector({**detector_config("denoising")["module"], "resolution": 32})
    x = torch.rand(4, 1, 32, 32, 32) * 2 - 1
    brain = torch.zeros_like(x, dtype=torch.uint8)
    brain[..., 8:24, 8:24, 8:24] = 1
    for graph in write_graphs(detector, x, brain, tmp_path, True):
        assert graph.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "reconstruct.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(["reconstruction"], {"x": x.numpy(), "brain": brain.numpy()})
    expected = detector.examine({"image": x, "brain": brain, "scan_id": []}).reconstruction.detach().numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found[brain.numpy() == 0], x.numpy()[brain.numpy() == 0])
    with pytest.raises(UserError, match="brain masks"):
        detector.examine({"image": x, "scan_id": []})


def test_it_names_no_scan_no_person_and_no_place(folder, tiny_run):
    """In no file, packed or not."""
    cohort = choose_trained(tiny_run, None).lineage["cohort"]
    table = read_manifest(tiny_run.parents[1] / "data" / "raw" / cohort / "manifest.csv")
    private = [
        *table["scan_id"],
        *table["subject_id"],
        str(tiny_run.parents[1]),
        str(Path(__file__).parents[1]),
        "/tmp/",
        "site-packages",
    ]
    private += [str(path) for path in (networks.__file__, torch.__path__[0])]
    texts = {}
    for path in folder.rglob("*"):
        if path.is_file():
            texts[path.name] = path.read_bytes()
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as file:
                    texts |= {f"{path.name}/{name}": file.read(name) for name in file.namelist()}
    assert len(texts) > 15
    found = {(name, word) for name, content in texts.items() for word in private if word.encode() in content}
    assert found == set()
    assert not (folder / "calibration" / "learned_from.csv").exists()


@pytest.mark.parametrize("count", [4, 5])
def test_a_site_is_exported_without_the_names_of_its_scans_and_a_small_one_not_at_all(
    tiny_run, tmp_path, capsys, count
):
    """Statistics with one scan more, less those without it, are that scan."""
    run = tmp_path / "runs" / "sites"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("wandb", "evaluation"))
    trained = choose_trained(run, None)
    (healthy, own), folder = load_calibration(trained, OWN), calibration_folder(trained.folder.path)
    healthy.save(healthy_file(trained.folder.path, "york"))
    made = replace(own, site="york", scores=[0.1] * count, cluster_masses={})
    made.save(folder / "york.json", trained.digest(), healthy_file(trained.folder.path, "york"))
    keep_seen_of("york", trained, pd.DataFrame({"scan_id": ["Smith_John"], "content": ["ab12"]}))
    assert "Smith_John" not in (folder / "york.learned_from.csv").read_text()
    assert copy_calibrations(trained, tmp_path / "out") == (["own", "york"] if count == 5 else ["own"])
    names = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert not any(name.endswith("learned_from.csv") for name in names)
    assert {"own.json", "own.npz"} <= names
    assert ({"york.json", "york.npz"} <= names) == (count == 5)
    assert ("calibrations of fewer than 5 scans are not exported" in capsys.readouterr().out) == (count == 4)


def test_card_and_descriptions_say_what_is_so(folder, tiny_run):
    metrics = json.loads((tiny_run / "evaluation" / "metrics.json").read_text())
    card = (folder / "README.md").read_text()
    auc = metrics["results"]["all"]["auc"]
    assert f"| A(x) | {auc['value']:.3f} [{auc['ci95'][0]:.3f}, {auc['ci95'][1]:.3f}] |" in card
    assert "| train | all | not told | not told |" in card
    assert "synthetic heads (phantoms)" in card
    assert "Not a medical device" in card
    assert re.search(r"\| train \| sex: [FM] \| not told \| not told \|", card)  # nobody is singled out
    assert "`detector.module.kappa`" in card
    described = json.loads((folder / "metadata.json").read_text())
    assert described["network_data_format"]["inputs"]["image"]["spatial_shape"] == [32, 32, 32]
    assert described["eval_metrics"]["A(x)"]["auc"] == auc["value"]
    listed = json.loads((folder / "croissant.json").read_text())["distribution"]
    assert {"model.safetensors", "calibration/own.json", "README.md"} <= {file["@id"] for file in listed}
    for file in listed:
        assert hashlib.sha256((folder / file["@id"]).read_bytes()).hexdigest() == file["sha256"]
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in sums} == {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    } - {"SHA256SUMS"}


def test_export_mistakes(folder, tiny_run, places, tmp_path, capsys, monkeypatch):
    assert export.main(["run=tiny", *places]) == 2
    refused(capsys, "out=FOLDER")
    assert export.main(["run=tiny", *places, f"out={folder}"]) == 2
    refused(capsys, "is there already")
    monkeypatch.chdir(tmp_path)
    assert export.main(["run=tiny", *places, "out=."]) == 2
    refused(capsys, "out=. is there already")
    assert export.main(["run=tiny", *places, "out=/proc/model"]) == 2
    refused(capsys, "out=/proc/model cannot be made")
    monkeypatch.setattr(networks, "NEEDED", ("onnx", "not_installed"))
    assert export.main(["run=tiny", *places, f"out={tmp_path}/new"]) == 2
    refused(capsys, "not_installed", "anomaly3d[export]", "onnx=false")
    assert not list(tmp_path.iterdir())


def test_scores_of_the_evaluation_are_those_of_the_folder(folder, tiny_run, places):
    """On a prepared test scan: the detector itself, in full precision."""
    row = read_scores(tiny_run / "evaluation" / "fanogan" / "scores.csv").iloc[0]
    lineage = choose_trained(tiny_run, None).lineage
    manifest = tiny_run.parents[1] / "data" / lineage["cohort"] / lineage["prepared"] / "manifest.csv"
    scan = read_manifest(manifest).set_index("scan_id").loc[row["scan_id"]]
    scorer = anomaly3d.Scorer.from_folder(folder, data_dir=places[0].split("=")[1])
    found = scorer.examine(nib.load(scan["image"]).get_fdata(), nib.load(scan["brain_mask"]).get_fdata())
    assert float(found.scores["total"][0]) == pytest.approx(row["total"], rel=1e-3)  # another batch size, in bfloat16
