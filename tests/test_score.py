"""``anomaly3d.score`` and ``anomaly3d.calibrate`` as a user types them."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pandas as pd
import pydicom
import pytest
from scipy import ndimage

from anomaly3d import Scorer, calibrate, score
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.anomaly_maps import Healthy
from anomaly3d.scoring.calibration import healthy_file
from anomaly3d.system.files import locked, sha256
from tests.conftest import refused
from tests.writers import write_series


def test_scoring_new_scans_writes_maps_on_their_own_grid(tiny_run, places, bad_and_good, tmp_path, capsys):
    out = tmp_path / "out"
    assert score.main(["run=tiny", f"root={bad_and_good}", f"out={out}", *places]) == 3
    table = pd.read_csv(out / "scores.csv").set_index("scan_id")
    assert list(table["verdict"]) == ["unreadable", "accepted", "unreadable"]
    assert "cut short" in table["reasons"]["cut"]
    original = nib.load(bad_and_good / "good.nii.gz")
    names = ("input", "reconstruction", "residual", "standardised", "brain_mask")
    maps = {n: nib.load(out / "good" / f"{n}.nii.gz") for n in names}
    for image in maps.values():
        assert image.shape == original.shape
        np.testing.assert_allclose(image.affine, original.affine)
    brain = maps["brain_mask"].get_fdata() > 0
    ml = brain.sum() * abs(np.linalg.det(original.affine)) / 1000
    assert 900 < ml < 2200
    inner = ndimage.distance_transform_edt(brain, np.abs(np.linalg.norm(original.affine[:3, :3], axis=0))) > 8  # mm
    hu, back = (ndimage.gaussian_filter(np.clip(i.get_fdata(), -20, 100), 1) for i in (original, maps["input"]))
    here, beside = (np.corrcoef(hu[inner], np.roll(back, n, 1)[inner])[0, 1] for n in (0, 3))
    assert here > max(0.3, beside + 0.1)  # the same head at the same place
    assert (maps["residual"].get_fdata()[~brain] == 0).all()
    difference = maps["input"].get_fdata() - maps["reconstruction"].get_fdata() - maps["residual"].get_fdata()
    assert np.abs(difference[brain]).max() <= 2  # HU, rounding
    z, residual = maps["standardised"].get_fdata()[brain], maps["residual"].get_fdata()[brain]
    assert np.corrcoef(z, residual)[0, 1] > 0.5
    assert abs(np.median(z)) < 0.5
    said = capsys.readouterr()
    assert re.search(r"standardised.nii.gz .* 10 ml lie beyond \d\.\d\d", said.out + said.err)


def test_a_scan_unlike_the_training_scans_says_so(tiny_run, places, bad_and_good, tmp_path, capsys):
    usual = tiny_run / "fanogan" / "finetune" / "calibration" / "inputs.json"
    before = usual.read_text()
    usual.write_text('{"noise_hu": [0.0, 0.5], "deep": [-1.0, 1.0]}')
    try:
        score.main(["run=tiny", *places, f"scans=[{bad_and_good}/good.nii.gz]", f"out={tmp_path}/out"])
    finally:
        usual.write_text(before)
    told = pd.read_csv(tmp_path / "out" / "scores.csv")["unlike_training"][0]
    assert re.fullmatch(r"noise_hu \d+\.\d+ \(trained with 0 to 0\.5\)", told)
    said = capsys.readouterr()
    assert f"unlike the training scans: {told}" in said.out + said.err
    assert "anomaly3d.calibrate" in said.out + said.err


@pytest.mark.parametrize("split", ["train", "calibration"])
def test_scans_that_the_run_learned_from_get_no_p_value(split, tiny_run, places, bad_and_good, tmp_path, capsys):
    """Under another name, beside one that it has never seen."""
    folder = tiny_run.parents[1] / "data" / "raw" / choose_trained(tiny_run, None).lineage["cohort"] / "ct"
    shutil.copy(sorted(folder.glob(f"{split}-*"))[0], bad_and_good / "renamed.nii.gz")
    scans = f"scans=[{bad_and_good}/good.nii.gz,{bad_and_good}/renamed.nii.gz]"
    assert score.main(["run=tiny", *places, scans, f"out={tmp_path}/out"]) == 0
    table = pd.read_csv(tmp_path / "out" / "scores.csv", keep_default_na=False).set_index("scan_id")
    assert table["learned_in"].to_dict() == {"good": "", "renamed": split}
    assert (table["p_value"] == "").to_dict() == {"good": False, "renamed": True}
    assert table.loc["renamed", "flagged"] == "" != table.loc["renamed", "total"]
    said = capsys.readouterr().out
    assert f"no p-value: the run learned from these very voxels, in its {split} split" in said
    assert f"in its {split} split: no p-value holds" in (tmp_path / "out" / "report.html").read_text()
    scorer = Scorer.from_run(tiny_run, data_dir=tiny_run.parents[1] / "data")
    known, new = (scorer.score(bad_and_good / f"{name}.nii.gz") for name in ("renamed", "good"))
    assert (known.learned_in, known.p_value, known.flagged, new.learned_in) == (split, None, None, "")
    assert known.score is not None
    assert new.p_value is not None
    assert known.clusters is None or known.clusters["p_value"].isna().all()


def test_a_site_gets_a_threshold_of_its_own(tiny_run, places, bad_and_good, tmp_path, capsys):
    arguments = ["run=tiny", *places]
    assert calibrate.main([*arguments, f"root={bad_and_good}"]) == 2
    refused(capsys, "site=NAME")
    assert score.main([*arguments, f"root={bad_and_good}", "site=utrecht"]) == 2
    refused(capsys, "anomaly3d.calibrate run=tiny detector=fanogan site=utrecht")
    new = [*arguments, f"root={bad_and_good}", "site=utrecht", f"out={tmp_path}/out"]
    for command in (score, calibrate):  # each process would wait for the other
        assert command.main([*new, "trainer=ddp"]) == 2
        refused(capsys, "score and calibrate work in one process")
    assert calibrate.main([*new, "false_positive_rate=0.5"]) == 3  # two scans of the folder cannot be read
    stored = json.loads((tiny_run / "fanogan" / "finetune" / "calibration" / "utrecht.json").read_text())
    assert len(stored["scores"]) == 1
    own, site = (Healthy.load(healthy_file(tiny_run / "fanogan" / "finetune", name)) for name in ("own", "utrecht"))
    assert site.count == own.count + 1  # the site's scan is now among what is usual
    brain = site.brains - own.brains
    assert set(np.unique(brain)) == {0, 1}
    assert (site.square["residual"][brain == 1] > own.square["residual"][brain == 1]).mean() > 0.99
    assert (site.square["residual"][brain == 0] == own.square["residual"][brain == 0]).all()
    assert score.main(new) == 3
    row = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("scan_id").loc["good"]
    assert row["score"] == pytest.approx(stored["scores"][0])
    assert row["learned_in"] == "calibration"  # it would count in its own p-value
    assert np.isnan(row["p_value"])
    assert row["site"] == "utrecht"
    data = tiny_run.parents[1] / "data"
    known, unknown = (Scorer.from_run(tiny_run, data_dir=data, site=site) for site in ("utrecht", "own"))
    found = [scorer.score(bad_and_good / "good.nii.gz") for scorer in (known, unknown)]
    assert [one.learned_in for one in found] == ["calibration", ""]
    assert [one.p_value is None for one in found] == [True, False]
    assert row["model"] == sha256(tiny_run / "fanogan" / "finetune" / "model.pt")[:12]


def test_scores_of_earlier_calls_are_kept(tiny_run, places, bad_and_good, tmp_path):
    for name in ("001", "b"):
        shutil.copy(bad_and_good / "good.nii.gz", tmp_path / f"{name}.nii.gz")
    out = tmp_path / "out"
    for scans in ("001.nii.gz", "b.nii.gz", "b.nii.gz"):
        assert score.main(["run=tiny", f"scans=[{tmp_path}/{scans}]", f"out={out}", *places]) == 0
    table = pd.read_csv(out / "scores.csv", dtype={"scan_id": str})
    assert list(table["scan_id"]) == ["001", "b"]
    assert table["total"][0] == table["total"][1]
    assert set(table["model"]) == {sha256(tiny_run / "fanogan" / "finetune" / "model.pt")[:12]}


def test_scores_of_two_detectors_are_not_put_into_one_table(tiny_run, places, bad_and_good, tmp_path, capsys):
    words = ["run=tiny", f"scans=[{bad_and_good}/good.nii.gz]", f"out={tmp_path}/out", *places]
    assert score.main(words) == 0
    before = (tmp_path / "out" / "scores.csv").read_bytes()
    assert score.main([*words, "detector=pca"]) == 2
    refused(capsys, "scores.csv holds scores of another detector", "out=...")
    assert (tmp_path / "out" / "scores.csv").read_bytes() == before
    assert score.main(["model=somewhere", *words[1:], "detector=pca"]) == 2
    refused(capsys, "model=... and detector=...")


def test_nothing_of_an_earlier_call_stays_beside_a_scan(tiny_run, places, bad_and_good, tmp_path):
    """Neither another model's pictures nor the maps of what a file no longer shows."""
    scan, out = tmp_path / "head.nii.gz", tmp_path / "out"
    shutil.copy(bad_and_good / "good.nii.gz", scan)
    words = ["run=tiny", f"scans=[{scan}]", f"out={out}", *places]
    assert score.main(words) == 0
    assert {"viewer.json", "standardised.nii.gz"} <= {path.name for path in (out / "head").iterdir()}
    assert score.main([*words, "images=false"]) == 0
    assert not (out / "head" / "viewer.json").exists()
    assert (out / "head" / "standardised.nii.gz").exists()
    scan.write_bytes(scan.read_bytes()[:2000])
    assert score.main(words) == 3
    assert not list((out / "head").iterdir())


def test_phantoms_say_nothing_about_people(tiny_run, places, bad_and_good, tmp_path, capsys):
    assert score.main(["run=tiny", f"scans=[{bad_and_good}/good.nii.gz]", f"out={tmp_path}/out", *places]) == 0
    assert "the detector learned from phantoms" in capsys.readouterr().out
    assert "The detector learned from phantoms" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("command", "works", "more"),
    [(score, "new_scans.score_scans", []), (calibrate, "site_threshold.calibrate_site", ["site=utrecht"])],
)
def test_two_calls_do_not_write_into_one_folder_at_once(
    tiny_run, places, bad_and_good, tmp_path, capsys, monkeypatch, command, works, more
):
    def work(job, *rest):
        with locked(job.out / ".lock", "it"):
            pass

    monkeypatch.setattr(f"anomaly3d.scoring.{works}", work)
    words = ["run=tiny", *places, f"scans=[{bad_and_good}/good.nii.gz]", f"out={tmp_path}/out", *more]
    assert command.main(words) == 2
    refused(capsys, "another process is at work on it")


@pytest.mark.parametrize("ill", ["1,,", ",subdural,", ",,tbi", "0,,,mask"])
def test_a_threshold_is_not_set_by_scans_that_are_not_healthy(tiny_run, places, bad_and_good, tmp_path, capsys, ill):
    scan = bad_and_good / "good.nii.gz"
    header = "scan_id,subject_id,image,split,label,lesions,group" + (",lesion_mask" if "mask" in ill else "")
    image = nib.load(scan)
    mask = np.zeros(image.shape, np.uint8)
    mask[tuple(slice(n // 2, n // 2 + 3) for n in image.shape)] = 1
    nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
    row = f"a,p,{scan},test,{ill.replace('mask', str(tmp_path / 'mask.nii.gz'))}"
    (tmp_path / "site.csv").write_text(f"{header}\n{row}\n")
    assert calibrate.main(["run=tiny", *places, f"manifest={tmp_path}/site.csv", "site=ill"]) == 2
    refused(capsys, "a threshold comes from healthy scans", "the first is a)", "leave them out")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["root=.", "scans=[good.nii.gz]"], "root=... and scans=... each say which scans"),
        (["scans=[good.nii.gz]", "batch=0"], "batch must be a whole number of scans, at least 1, not 0"),
        (["scans=null"], "no scans: name a folder with root="),
        (["scans=[good.nii.gz]", "logger=null"], "null is no choice of a group"),
    ],
)
def test_scoring_mistakes_are_sentences(tiny_run, places, bad_and_good, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(bad_and_good)
    assert score.main(["run=tiny", *places, f"out={tmp_path}", *words]) == 2
    refused(capsys, told)


def test_another_scan_of_the_same_name_does_not_overwrite_the_first(tiny_run, places, bad_and_good, tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(bad_and_good / "good.nii.gz", tmp_path / name / "ct.nii.gz")
    common = ["run=tiny", f"out={tmp_path}/out", *places]
    assert score.main([*common, f"scans={tmp_path}/a/ct.nii.gz"]) == 0
    before = (tmp_path / "out" / "scores.csv").read_bytes()
    assert score.main([*common, f"scans={tmp_path}/b/ct.nii.gz"]) == 2
    refused(capsys, "already holds a scan called ct, from another file", "out=")
    assert (tmp_path / "out" / "scores.csv").read_bytes() == before
    assert score.main([*common, f"scans=[{tmp_path}/a/ct.nii.gz,{tmp_path}/b/ct.nii.gz]", f"out={tmp_path}/both"]) == 0
    assert "the same voxels: a-ct (test) = b-ct (test)" in capsys.readouterr().out
    assert calibrate.main([*common, f"root={tmp_path}", "site=twice"]) == 2
    refused(capsys, "the same voxels are there under several names")


def test_the_scans_of_a_manifest_are_scored_whatever_their_split(tiny_run, places, bad_and_good, tmp_path):
    good = bad_and_good / "good.nii.gz"
    rows = f"scan_id;subject_id;image;label;split\n007;p1;{good};0;train\nbad;p2;{bad_and_good / 'text.nii'};1;test\n"
    (tmp_path / "study.csv").write_text(rows)
    out = tmp_path / "out"
    assert score.main(["run=tiny", f"manifest={tmp_path / 'study.csv'}", f"out={out}", *places]) == 3
    table = pd.read_csv(out / "scores.csv", dtype={"scan_id": str}).set_index("scan_id")
    assert table["verdict"].to_dict() == {"007": "accepted", "bad": "unreadable"}
    assert table["total"]["007"] > 0
    assert (out / "007" / "residual.nii.gz").exists()


def test_rejected_scans_have_a_score_out_of_scope_and_may_be_accepted(tiny_run, places, bad_and_good, tmp_path, capsys):
    good = nib.load(bad_and_good / "good.nii.gz")
    noise = np.random.default_rng(0).normal(0, 60, good.shape)
    nib.save(nib.Nifti1Image((good.get_fdata() + noise).astype(np.int16), good.affine), bad_and_good / "noisy.nii.gz")
    scans = f"scans=[{bad_and_good}/good.nii.gz,{bad_and_good}/noisy.nii.gz]"
    arguments = ["run=tiny", *places, scans, f"out={tmp_path}/out", "images=false"]
    assert score.main([*arguments, "accept=[noise]"]) == 2
    refused(capsys, "no scan is called noise", "good, noisy")
    assert score.main(arguments) == 3
    table = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("scan_id")
    assert table["verdict"].to_dict() == {"good": "accepted", "noisy": "rejected"}
    assert table["in_scope"].to_dict() == {"good": True, "noisy": False}
    assert (table["score"] > 0).all()
    assert table["p_value"].notna().to_dict() == {"good": True, "noisy": False}
    assert table["discovery"].isna().all()  # among a single scan that counts
    assert "outside of what the detector was made for" in capsys.readouterr().out
    assert (tmp_path / "out" / "noisy" / "residual.nii.gz").exists()
    alone = Scorer.from_run(tiny_run, data_dir=places[0].split("=")[1]).score(bad_and_good / "noisy.nii.gz")
    assert (alone.verdict, alone.reasons) == ("rejected", table["reasons"]["noisy"])
    assert alone.score == pytest.approx(table["score"]["noisy"], rel=1e-3)
    assert (alone.p_value, alone.flagged) == (None, None)
    assert score.main([*arguments, "accept=[noisy]"]) == 0
    table = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("scan_id")
    assert table["discovery"].notna().all()  # now two scans count
    row = table.loc["noisy"]
    assert row["verdict"] == "accepted"
    assert row["reasons"].startswith("overruled: noisy, standard deviation")
    assert row["p_value"] > 0
    assert pd.read_csv(tmp_path / "out" / "quality.csv")["noise_hu"][1] > 10
    assert "2 scans" in (tmp_path / "out" / "report.html").read_text()


def test_a_dicom_scan_gets_its_map_and_clusters_as_dicom_when_asked(tiny_run, places, bad_and_good, tmp_path):
    write_series(tmp_path / "series", nib.load(bad_and_good / "good.nii.gz"), PatientName="Doe^Jane")
    scan = f"scans=[{tmp_path}/series]"
    for asked in (False, True):
        out = tmp_path / str(asked)
        assert score.main(["run=tiny", scan, f"out={out}", f"dicom={asked}".lower(), "images=false", *places]) == 0
        assert {path.name for path in out.rglob("*.dcm")} == ({"anomaly_map.dcm", "clusters.dcm"} if asked else set())
    (folder,) = (path.parent for path in out.glob("*/clusters.dcm"))
    made, table = pydicom.dcmread(folder / "clusters.dcm"), pd.read_csv(folder / "clusters.csv")
    wanted = [f"{row['cluster']} {row['name']}"[:64] for row in table.to_dict("records")]
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == wanted
    drawn = np.bincount(np.asarray(nib.load(folder / "clusters.nii.gz").dataobj).ravel())[1:]
    inside = {s.SegmentNumber: 0 for s in made.SegmentSequence}
    (shared,) = made.SharedFunctionalGroupsSequence  # where a single segment stands
    for pixels, group in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        (segment,) = (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence
        inside[segment.ReferencedSegmentNumber] += int(pixels.sum())
    assert list(inside.values()) == list(drawn)
    assert score.main(["run=tiny", scan, f"out={out}", "images=false", *places]) == 0
    assert not list(out.rglob("*.dcm"))  # they would be of an earlier call
