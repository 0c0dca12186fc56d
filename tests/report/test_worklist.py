"""The page of new scans from a folder of results, and what it shows of a scan."""

import base64
import gzip
import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from anomaly3d.cli import CONF
from anomaly3d.report import worklist
from anomaly3d.report.viewer import Shown
from anomaly3d.report.worklist import (
    Worklist,
    cluster_rows,
    coarser,
    fitting,
    in_order,
    pack_on_scan,
    sentences,
    write_worklist,
)
from anomaly3d.runs.folder import PhaseFolder, Trained
from anomaly3d.scans.nifti import save_volume
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.system.instantiate import build
from tests.conftest import preprocessing

OBLIQUE = np.array([[-0.9, 0.1, 0, 30], [0.05, -0.8, 0.9, 20], [0.1, 0, 2, -40], [0, 0, 0, 1.0]])
COLUMNS = "scan_id,verdict,reasons,in_scope,total,score_name,score,p_value,flagged,discovery,site,unlike_training,model"
SCORES = f"""{COLUMNS}
b,accepted,,True,3.0,total,3.0,0.5,False,False,own,,m
<i>,rejected,noisy,False,9.0,total,9.0,,,,own,,m
gone,unreadable,text,,,,,,,,,,m
a,accepted,overruled: noisy,True,7.0,total,7.0,0.02,True,True,own,noise_hu 9,m
c,accepted,,True,4.0,total,4.0,0.5,False,False,own,,m
"""


@pytest.fixture
def ct():
    """The preprocessor, whose quality limits are those of the config."""
    return build(preprocessing(), "preprocessing config")


@pytest.fixture
def results(tmp_path):
    """A folder of results: scores and quality of five scans, pictures of two of them."""
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "b").mkdir()
    (out / "scores.csv").write_text(SCORES)
    (out / "quality.csv").write_text("scan_id,read_as,noise_hu,slices\na,series 2 of 3,13.01,40\nb,,2,40\n<i>,,99,40\n")
    for name in "ab":
        volumes = {"data": name, "own": {"data": "xyz"}}
        (out / name / "viewer.json").write_text(json.dumps({"thumbnail": f"PNG{name}", "volumes": volumes}))
    return out


@pytest.fixture
def about(tmp_path, ct):
    made = dict.fromkeys(("hardware", "torch", "lightning", "monai", "python"), "x") | {"date": "2026-01-01T00:00"}
    lineage = dict.fromkeys(("config_hash", "version", "git_commit", "prepared", "split_hash", "parent_sha256"), "x")
    lineage |= {"title": "A method", "made_with": made, "synthetic": False}
    trained = Trained("vae", "fit", PhaseFolder(tmp_path / "runs" / "study" / "vae" / "fit"), lineage)
    locked = Calibration("own", "total", 0.1, list(map(float, range(1, 20))), 10.0, {"standardised": 2.5})
    return Worklist(trained, ct, locked, True)


def test_the_rarest_come_first_and_scans_without_a_p_value_last(results):
    table = in_order(worklist.read_text(results / "scores.csv"))
    assert table["scan_id"].tolist() == ["a", "c", "b", "<i>", "gone"]
    bare = in_order(
        pd.DataFrame({"scan_id": ["x", "y"], "verdict": "accepted", "in_scope": "True", "total": ["1", "2"]})
    )
    assert bare["scan_id"].tolist() == ["y", "x"]  # without a calibration the highest score


def test_the_page_says_what_is_known_of_each_scan(results, about):
    write_worklist(results / "report.html", about)
    page = (results / "report.html").read_text()
    assert "5 scans: 1 flagged, 2 below the threshold, 1 set aside by quality control, 1 cannot be used." in page
    assert "at least 18, which 10 % of healthy scans may reach; set, like the p-values, on 19 healthy scans" in page
    assert re.findall(r'<tr data-id="([^"]*)"', page) == ["a", "c", "b", "&lt;i&gt;", "gone"]
    assert "<i>" not in page.split('<script type="application/json"')[0]
    told = dict(re.findall(r'<p class="details[^>]* data-id="([^"]*)" hidden>(.*?)</p>', page))
    assert "p = 0.020" in told["a"]
    assert "was overruled: noisy" in told["a"]
    assert "unlike the training scans, so its score may tell of the scanner: noise_hu 9" in told["a"]
    assert told["a"].endswith("Series 2 of 3.")
    assert "A(x) 9, outside of what the detector was made for" in told["&lt;i&gt;"]
    assert told["gone"] == "It cannot be used: text."
    quality = page.split('<div class="details" data-id="a"')[1].split("</div>")[0]
    assert re.search(r'<tr class="out"><td [^>]*>noise_hu</td><td>13.01</td><td>at most 10</td>', quality)
    assert re.search(r"<tr><td [^>]*>slices</td><td>40</td>", quality)
    assert re.search(r'<tr class="out"><td [^>]*>turn_deg</td><td>not measured</td>', quality)
    assert page.count("PNGa") == page.count("PNGb") == 1


def test_scans_of_several_calls_say_by_which_score_and_threshold(results, about):
    scores = worklist.read_text(results / "scores.csv")
    scores.loc[scores["scan_id"] == "a", ["score_name", "score", "site"]] = ["peak", "2.5", "utrecht"]
    scores.to_csv(results / "scores.csv", index=False)
    write_worklist(results / "report.html", about)
    page = (results / "report.html").read_text()
    assert "In the last call, flagged are scans whose A(x) is at least 18" in page
    assert "Scans of earlier calls keep what theirs said." in page
    heads = re.findall(r"<th><button>([^<]*)</button>", page)
    row = re.findall(r"<td[^>]*>([^<]*)</td>", page.split('<tr data-id="a"')[1].split("</tr>")[0])[-len(heads) :]
    told = dict(zip(heads, row, strict=True))
    assert (told["score"], told["score_name"], told["site"]) == ("2.5", "peak", "utrecht")
    assert "peak" not in heads


def test_what_the_run_learned_from_is_counted_apart_and_no_cluster_is_said(results, about):
    scores = worklist.read_text(results / "scores.csv")
    scores.loc[scores["scan_id"] == "b", ["p_value", "flagged", "learned_in"]] = ["", "", "train"]
    scores.to_csv(results / "scores.csv", index=False)
    (results / "a" / "clusters.csv").write_text("name,ml,p_value,peak,mean_value,x,y,z\n")
    write_worklist(results / "report.html", about)
    page = (results / "report.html").read_text()
    assert "1 without a p-value, since the run learned from it" in page
    told = dict(re.findall(r'<p class="details[^>]* data-id="([^"]*)" hidden>(.*?)</p>', page))
    assert [name for name, text in told.items() if "No cluster lies beyond" in text] == ["a"]


def test_scans_stay_out_where_they_are_not_wanted_and_beyond_the_budget(results, about, monkeypatch):
    write_worklist(results / "report.html", Worklist(about.trained, about.preprocessor, None, False))
    page = (results / "report.html").read_text()
    assert "PNG" not in page
    assert "xyz" not in page
    assert "images=true" in page
    assert "No threshold is known" in page
    volumes = {name: {"data": "1234", "own": {"data": "123456"}} for name in "abc"}
    monkeypatch.setattr(worklist, "BUDGET", 25)
    assert list(fitting(volumes)) == ["a", "b"]
    monkeypatch.setattr(worklist, "SCANS", 1)
    assert list(fitting(volumes)) == ["a"]
    write_worklist(results / "report.html", about)
    assert "1 scans carry their volumes" in (results / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"p_value": "", "flagged": "", "site": ""}, "no threshold is known"),
        (
            {"p_value": "", "flagged": "", "site": "own"},
            "its age is not known, and the threshold is for people of known age",
        ),
        ({"p_value": "", "flagged": "", "learned_in": "train"}, "in its train split: no p-value holds"),
        ({"score_name": "peak", "score": "2.5"}, "Peak 2.5; a healthy scan scores as high with a chance of 50 %"),
        ({"verdict": "rejected", "reasons": "cut", "total": "", "score": ""}, "Quality control sets it aside: cut."),
    ],
)
def test_a_scan_in_sentences(results, change, words):
    row = worklist.read_text(results / "scores.csv").iloc[0].to_dict() | {"learned_in": ""} | change
    said = sentences(row)
    assert words in said[0]
    assert len(said) == 1


def test_coarser_voxels_lie_where_the_scan_is(monkeypatch):
    monkeypatch.setattr(worklist, "VOXELS", 800)
    index = np.stack(np.meshgrid(*map(np.arange, (31, 30, 7)), indexing="ij"), -1)
    values = nib.affines.apply_affine(OBLIQUE, index) @ [1.0, 2, 3]  # a plane in the scan's mm
    found, affine = coarser(values, OBLIQUE)
    assert found.size <= 800
    assert found.shape[2] == 7  # thick slices stay as they are
    again = np.stack(np.meshgrid(*map(np.arange, found.shape), indexing="ij"), -1)
    np.testing.assert_allclose(found, nib.affines.apply_affine(affine, again) @ [1.0, 2, 3])


@pytest.fixture
def prepared(tmp_path):
    """What the page shows of a scan whose prepared volume is a wave."""
    wave = np.sin(np.indices((6, 5, 4)).sum(0)).astype(np.float32) * 0.9
    files = {"image": tmp_path / "image.nii.gz", "brain_mask": tmp_path / "brain_mask.nii.gz"}
    for path, data in zip(files.values(), (wave, np.ones_like(wave)), strict=True):
        save_volume(path, data, np.eye(4))
    return Shown(files, None, None)


def test_a_scan_without_a_unit_is_shown_as_what_was_prepared(prepared, monkeypatch):
    """MR: the signal's own scale is found from the brain."""
    mr = build(yaml.safe_load((Path(CONF) / "preprocessing" / "t1w.yaml").read_text()), "preprocessing config")
    monkeypatch.setattr(worklist, "pack", lambda shown: {"affine": np.eye(4)[:3].tolist(), "finding": [1, 1, 1]})
    wave = nib.load(prepared.row["image"]).get_fdata()
    made = pack_on_scan(prepared, nib.nifti1.Nifti1Image(700 + 300 * wave, np.eye(4)), np.eye(4), mr)
    data = np.frombuffer(gzip.decompress(base64.b64decode(made["own"]["data"])), np.uint8).reshape(6, 5, 4, order="F")
    np.testing.assert_allclose(data / 127.5 - 1, wave, atol=0.01)


def test_the_small_grid_is_laid_on_the_scan(ct, prepared, monkeypatch):
    small = np.diag([3.0, 3, 3, 1])[:3].tolist()
    monkeypatch.setattr(worklist, "pack", lambda shown: {"affine": small, "finding": [1 / 3, 2 / 3, 1]})
    hu = np.random.default_rng(0).uniform(-200, 300, (6, 5, 4)).astype(np.float32)
    made = pack_on_scan(prepared, nib.nifti1.Nifti1Image(hu, OBLIQUE), OBLIQUE, ct)
    np.testing.assert_allclose(made["affine"], (OBLIQUE @ np.diag([3.0, 3, 3, 1]))[:3], atol=1e-4)
    upright = nib.as_closest_canonical(nib.nifti1.Nifti1Image(hu, OBLIQUE))
    np.testing.assert_allclose(made["own"]["affine"], upright.affine[:3], atol=1e-4)
    here = np.array(made["own"]["affine"]) @ [*made["own"]["finding"], 1]
    np.testing.assert_allclose(here, (OBLIQUE @ [1, 2, 3, 1])[:3], atol=1e-3)
    data = np.frombuffer(gzip.decompress(base64.b64decode(made["own"]["data"])), np.uint8)
    low, high = ct.window
    shown = data.reshape(made["own"]["shape"], order="F") / 255 * (high - low) + low
    np.testing.assert_allclose(shown, upright.get_fdata().clip(low, high), atol=(high - low) / 500)


def test_clusters_are_listed_with_their_place_in_the_scan_that_is_shown(tmp_path):
    file = tmp_path / "clusters.csv"
    assert cluster_rows(file, None) == []
    x, y, z = (OBLIQUE @ [3, 2, 1, 1])[:3]
    names = "cluster,name,ml,p_value,peak,mean_value,x,y,z"
    file.write_text(
        f'{names}\n1,"left frontal, extra-axial",12.489,,6.1,70.04,{x},{y},{z}\n2,brainstem,1,0.2,-3,9,900,0,0\n'
    )
    first, second = cluster_rows(file, {"own": {"affine": OBLIQUE[:3].tolist(), "shape": [6, 5, 4]}})
    assert first == {"cells": ["left frontal, extra-axial", "12.5", "", "6.1", "70"], "place": [3, 2, 1]}
    assert all(0 <= i < n for i, n in zip(second["place"], (6, 5, 4), strict=True))
    assert cluster_rows(file, None)[0]["place"] == []
