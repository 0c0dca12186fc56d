"""``anomaly3d.prepare`` as a user types it: bad scans, a kill, a full disk."""

import base64
import gc
import io
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly3d import evaluate, prepare, train
from anomaly3d.cohorts.folder import FolderCohort
from anomaly3d.preprocessing.cohort import Study
from anomaly3d.preprocessing.ncct import NCCT
from anomaly3d.runs.folder import PhaseFolder
from tests.conftest import TINY, counts, refused
from tests.writers import small_head, write_series


def test_manifest_mistakes_come_before_any_work(tmp_path, capsys):
    table = pd.DataFrame({"scan_id": ["a", "a"], "subject_id": "p", "image": "x.nii", "label": "0", "split": "train"})
    table.to_csv(tmp_path / "manifest.csv", index=False)
    arguments = ["dataset=manifest", f"dataset.manifest={tmp_path}/manifest.csv", f"data_dir={tmp_path}/data"]
    assert prepare.main(arguments) == 2
    refused(capsys, "duplicate scan_id a", "row 2, 3", "x.nii")
    assert not (tmp_path / "data").exists()


def test_prepare_goes_on_after_a_bad_scan_and_says_so(bad_and_good, tmp_path, capsys, ncct):
    arguments = ["dataset=folder", f"dataset.root={bad_and_good}", f"data_dir={tmp_path}/data", "workers=1"]
    arguments.append("preprocessing.registration_enough=0")
    assert prepare.main(arguments) == 3
    assert "text: unreadable: not a NIfTI image" in capsys.readouterr().out
    quality = pd.read_csv(next(tmp_path.glob("data/folder-*/*/quality.csv"))).set_index("scan_id")
    assert quality["verdict"]["good"] == "accepted"
    page = next(tmp_path.glob("data/folder-*/*/quality.html")).read_text()
    assert page.index("<strong>text</strong> · unreadable") < page.index("<strong>good</strong> · accepted · test")
    assert "<small>900 to 2300</small>" in page
    preview = np.asarray(Image.open(next(tmp_path.glob("data/folder-*/*/preview/good.png"))))
    assert preview.shape == (137, 113 + 113 + 137, 3)  # axial, coronal, sagittal at 1.5 mm
    (shown,) = re.findall(r"data:image/webp;base64,([^\"]*)", page)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))))
    assert shown.shape == preview.shape
    assert np.abs(shown.astype(float) - preview).mean() < 8  # of 255
    (heading,) = re.findall(r"<h1>(folder-.*): 3 scans: (.*)</h1>", page)
    assert sorted(heading[1].split(", ")) == ["1 accepted", "2 unreadable"]
    out = re.findall(r'<div class="out"><dt>(\w+)</dt>', page)
    assert out == [name for name in ncct.quality if not ncct.passes(name, quality.loc["good", name])]
    assert (preview.min(axis=2) > 250).mean() > 0.03  # the skull, which the mask leaves out, is there
    files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("data/folder-*/*/image/*")}
    assert len(files) == 1
    assert prepare.main(arguments) == 3  # a second call does nothing anew
    assert {p: p.stat().st_mtime_ns for p in files} == files


def test_a_scan_on_which_the_program_fails_does_not_take_the_others_with_it(bad_and_good, tmp_path, ncct, monkeypatch):
    """Any exception: the reason in words, the trace in a file, and another try by a mended program."""
    image = nib.load(bad_and_good / "good.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), bad_and_good / "worse.nii.gz")
    real = NCCT.prepare

    def failing(self, scan, companions):
        if next(count) == 1:
            raise ZeroDivisionError("a bug of ours")
        return real(self, scan, companions)

    count = itertools.count()
    monkeypatch.setattr(NCCT, "prepare", failing)
    study = Study(FolderCohort("mine", str(bad_and_good)), ncct, tmp_path)
    quality = study.prepare().quality.set_index("scan_id")
    assert quality["verdict"]["good"] == "accepted"
    assert quality["verdict"]["worse"] == "unreadable"
    assert "ZeroDivisionError" in quality["reasons"]["worse"]
    assert "a bug of ours" in (study.folder / "logs" / "worse.log").read_text()
    assert study.prepare().quality.set_index("scan_id")["verdict"]["worse"] == "accepted"


def test_a_killed_prepare_goes_on_and_gives_the_same_bytes(tiny_run, tmp_path):
    data, lineage = tiny_run.parents[1] / "data", PhaseFolder(tiny_run / "fanogan" / "gan").read()
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        shutil.copy(data / "raw" / lineage["cohort"] / "ct" / f"train-{i:04d}.nii.gz", folder)
    arguments = ["dataset=folder", f"dataset.root={folder}", f"data_dir={tmp_path}/data", "workers=1"]
    arguments += [f"preprocessing.{n}" for n in ("resolution=32", "working_spacing=3", "registration_enough=0")]
    with subprocess.Popen(
        [sys.executable, "-m", "anomaly3d.prepare", *arguments], stdout=subprocess.DEVNULL
    ) as process:
        for _ in range(600):
            if list(tmp_path.glob("data/folder-*/*/outcomes/*.json")) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.kill()
    done = list(tmp_path.glob("data/folder-*/*/outcomes/train-*.json"))
    assert 1 <= len(done) <= 3
    assert prepare.main(arguments) == 0
    for i in range(3):
        name = f"image/train-{i:04d}.nii.gz"
        (made,) = tmp_path.glob(f"data/folder-*/*/{name}")
        assert made.read_bytes() == (data / lineage["cohort"] / lineage["prepared"] / name).read_bytes()


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
        gc.collect()  # until then the file that could not be written is open
        subprocess.run(["umount", str(small)], check=True)


def test_the_same_voxels_under_two_names_are_refused_before_anything_is_learned(tiny_run, tmp_path, capsys):
    """A copy, one packed anew and one in another format, in other splits; the table of all scans is kept."""
    phantom = sorted(tiny_run.parents[1].glob("data/raw/*/ct/train-*.nii.gz"))[0]
    image = nib.load(phantom)
    shutil.copy(phantom, tmp_path / "a.nii.gz")
    nib.save(nib.nifti2.Nifti2Image(np.asarray(image.dataobj).astype(np.float32), image.affine), tmp_path / "b.nii")
    rows = "scan_id,subject_id,image,label,split\na,p1,a.nii.gz,0,train\nb,p2,b.nii,0,test\n"
    (tmp_path / "manifest.csv").write_text(rows)
    arguments = ["dataset=manifest", f"dataset.manifest={tmp_path}/manifest.csv", f"data_dir={tmp_path}/data"]
    arguments += ["preprocessing.registration_enough=0", "workers=1", f"runs_dir={tmp_path}/runs"]
    for command in (prepare, train):
        assert command.main([*arguments, *(["+phase=gan"] if command is train else [])]) == 2
        refused(capsys, "the same voxels are there under several names: a (train) = b (test)")
    assert len(pd.read_csv(next(tmp_path.glob("data/*/*/quality.csv")))) == 2
    (tmp_path / "manifest.csv").write_text(rows.replace("b.nii,", "a.nii.gz,"))  # seen before any work
    elsewhere = [f"data_dir={tmp_path}/none" if text.startswith("data_dir") else text for text in arguments]
    assert prepare.main(elsewhere) == 2
    refused(capsys, f"names {tmp_path}/a.nii.gz in several rows (a, b)")
    assert not (tmp_path / "none").exists()
    (tmp_path / "manifest.csv").write_text(rows.replace(",0,", ",,").replace("train", "test"))
    assert prepare.main(arguments) == 0  # where nothing is known, nothing leaks


def test_a_mask_that_does_not_lie_on_its_scan_is_that_scans_verdict(tiny_run, tmp_path):
    phantom = sorted(tiny_run.parents[1].glob("data/raw/*/ct/subdural-*.nii.gz"))[0]
    lesion = phantom.parents[1] / "lesion" / phantom.name
    nib.save(nib.Nifti1Image(np.asarray(nib.load(lesion).dataobj), np.eye(4)), tmp_path / "identity.nii.gz")
    rows = ["scan_id,subject_id,image,label,split,lesion_mask,brain_mask"]
    shutil.copy(phantom, tmp_path / "b.nii.gz")
    rows += [f"a,p1,{phantom},1,test,identity.nii.gz,", "b,p1,b.nii.gz,1,test,,identity.nii.gz"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    arguments = ["dataset=manifest", f"dataset.manifest={tmp_path}/manifest.csv", f"data_dir={tmp_path}/data"]
    assert prepare.main([*arguments, "preprocessing.registration_enough=0", "workers=1"]) == 3
    quality = pd.read_csv(next(tmp_path.glob("data/*/*/quality.csv")))
    assert set(quality["verdict"]) == {"unreadable"}
    assert quality["reasons"].str.contains("identity.nii.gz has the scan's shape but another affine").all()


def test_a_stripped_head_is_prepared_with_the_switch_that_its_refusal_names(tiny_run, tmp_path, capsys):
    """The brain of a phantom alone lands where the whole head's brain does."""
    phantom = sorted(tiny_run.parents[1].glob("data/raw/*/ct/train-*.nii.gz"))[0]
    image, inside = nib.load(phantom), nib.load(phantom.parents[1] / "intracranial" / phantom.name)
    brain = np.where(np.asarray(inside.dataobj) > 0, np.asarray(image.dataobj), 0).astype(np.int16)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(brain, image.affine), tmp_path / "in" / "a.nii.gz")
    common = ["dataset=folder", f"dataset.root={tmp_path}/in", f"data_dir={tmp_path}/data", "workers=1"]
    common.append("preprocessing.registration_enough=0")
    assert prepare.main(common) == 3
    assert "preprocessing.stripped=true" in capsys.readouterr().out
    assert prepare.main([*common, "preprocessing.stripped=true"]) == 0
    assert prepare.main([*common, f"dataset.root={phantom.parent}", f"data_dir={tmp_path}/whole"]) in (0, 3)
    stripped = nib.load(next(tmp_path.glob("data/*/*/brain_mask/a.nii.gz"))).get_fdata() > 0
    whole = nib.load(next(tmp_path.glob(f"whole/*/*/brain_mask/{phantom.name}"))).get_fdata() > 0
    assert 2 * (stripped & whole).sum() / (stripped.sum() + whole.sum()) > 0.85


@pytest.mark.skipif(os.name != "posix", reason="signals of other systems differ")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_prepare_at_once_with_a_sentence(tmp_path, number):
    """Also while its workers are in the middle of scans; none of them stays behind."""
    command = [sys.executable, "-m", "anomaly3d.prepare", f"data_dir={tmp_path}", "workers=2", counts(train=40)]

    def hear() -> None:  # a shell starts what runs in the background deaf to Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, preexec_fn=hear, **pipes) as call:
        for _ in range(600):
            if list(tmp_path.glob("raw/*/ct/*.nii.gz")):
                break
            time.sleep(0.1)
        call.send_signal(number)
        _, error = call.communicate(timeout=30)
    assert call.returncode == 128 + number
    assert error.strip() == "interrupted: run the same command again to go on from where it stopped"


def test_a_lost_or_damaged_prepared_file_is_made_anew(tiny_run, tmp_path):
    """Also a transform, a table that was cut, and nothing else."""
    phantoms = sorted(tiny_run.parents[1].glob("data/raw/*/ct/train-*.nii.gz"))[:3]
    (tmp_path / "in").mkdir()
    for path in phantoms:
        shutil.copy(path, tmp_path / "in")
    arguments = ["dataset=folder", f"dataset.root={tmp_path}/in", f"data_dir={tmp_path}/data", "workers=1"]
    arguments.append("preprocessing.registration_enough=0")
    prepare.main(arguments)
    (folder,) = tmp_path.glob("data/folder-*/*")
    before = {path: path.read_bytes() for kind in ("image", "transform") for path in (folder / kind).iterdir()}
    first, second, third = sorted((folder / "image").iterdir())
    third_time = third.stat().st_mtime_ns
    first.write_bytes(first.read_bytes()[:1000])
    (folder / "transform" / second.name.replace(".nii.gz", ".json")).unlink()
    (folder / "outcomes" / first.name.replace(".nii.gz", ".json")).write_text("{")
    prepare.main(arguments)
    assert {path: path.read_bytes() for path in before} == before
    assert third.stat().st_mtime_ns == third_time


def test_a_study_that_moved_prepares_nothing_anew(tiny_run, tmp_path):
    """Known by its bytes: also copied, spelled another way, or with new times; but not by its name alone."""
    phantoms = sorted(tiny_run.parents[1].glob("data/raw/*/ct/train-*.nii.gz"))[:2]
    (tmp_path / "in").mkdir()
    for path in phantoms:
        shutil.copy(path, tmp_path / "in")
    common = ["dataset=folder", f"data_dir={tmp_path}/data", "workers=1", "preprocessing.registration_enough=0"]
    assert prepare.main([*common, f"dataset.root={tmp_path}/in"]) == 0
    (first,) = tmp_path.glob("data/folder-*/*/image")
    for kept in (first.parent / "outcomes").iterdir():
        kept.write_text(kept.read_text().replace('"slices": ', '"slices": 1'))  # which nothing would measure again
    shutil.copytree(tmp_path / "in", tmp_path / "moved", copy_function=shutil.copyfile)
    assert prepare.main([*common, f"dataset.root={tmp_path}/./in/../moved"]) == 0
    (second,) = set(tmp_path.glob("data/folder-*/*/image")) - {first}
    there, here = ({path.name: path.read_bytes() for path in place.iterdir()} for place in (first, second))
    assert here == there
    numbers = [pd.read_csv(place.parent / "quality.csv")["slices"].tolist() for place in (first, second)]
    assert numbers[1] == [100 + number for number in numbers[0]]
    assert len(list((second.parent / "preview").iterdir())) == 2
    shutil.copyfile(phantoms[1], tmp_path / "moved" / phantoms[0].name)  # another head under the name of the first
    (tmp_path / "moved" / phantoms[1].name).unlink()
    assert prepare.main([*common, f"dataset.root={tmp_path}/moved"]) == 0
    made, name = (second / phantoms[0].name).read_bytes(), phantoms[1].name
    assert made == (first / name).read_bytes() != (first / phantoms[0].name).read_bytes()


def test_dicom_files_among_others_are_prepared_once_and_anew_when_one_changes(tmp_path):
    """They are known to the manifest by a list that every call writes."""
    (tmp_path / "in").mkdir()
    write_series(tmp_path / "in", small_head(1), name="a{:03d}", study="1.2.3")
    write_series(tmp_path / "in", small_head(2), name="b{:03d}", study="1.2.4")
    arguments = ["dataset=dicom", f"dataset.root={tmp_path}/in", f"data_dir={tmp_path}/data", "workers=1"]
    arguments += ["preprocessing.registration_enough=0"]
    prepare.main(arguments)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/dicom-*/*/outcomes/*")}
    assert len(times) == 2
    prepare.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    os.utime(next((tmp_path / "in").glob("b*")))
    prepare.main(arguments)
    assert sum(path.stat().st_mtime_ns != time for path, time in times.items()) == 1


def test_the_scans_of_a_run_that_is_named_are_prepared_and_not_phantoms_of_nobody(tiny_run, places, capsys):
    assert prepare.main(["run=tiny", *places, "workers=1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "run tiny goes on with preprocessing.resolution=32" in said
    assert "these are phantoms" not in said
    assert "12 scans" in said


def test_masks_that_cannot_be_of_a_lesion_are_told(tiny_run, tmp_path, capsys):
    """Turned inside out, and empty although something was found."""
    raw = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    image = nib.load(raw)
    rows = ["scan_id,subject_id,image,label,split,lesion_mask"]
    for name, value in (("inverted", 1), ("nothing", 0)):
        nib.save(
            nib.Nifti1Image(image.get_fdata().astype(np.float32) + value, image.affine), tmp_path / f"{name}.nii.gz"
        )
        filled = np.full(image.shape, value, np.uint8)
        filled[3:6, 3:6, 3:6] = 0
        nib.save(nib.Nifti1Image(filled, image.affine), tmp_path / f"{name}_mask.nii.gz")
        rows.append(f"{name},{name},{name}.nii.gz,1,test,{name}_mask.nii.gz")
    (tmp_path / "manifest.csv").write_text("\n".join(rows) + "\n")
    settings = [w for w in TINY if w.startswith(("preprocessing", "workers"))]
    words = ["dataset=manifest", f"dataset.manifest={tmp_path}/manifest.csv", f"data_dir={tmp_path}/data", *settings]
    assert prepare.main(words) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"inverted: unreadable: its lesion_mask has \d+ ml, more than its brain of \d+", said)
    assert "lesion masks are empty of scans with findings (label 1): nothing" in said


def test_a_changed_prepared_file_is_found_by_evaluate_and_mended_by_prepare(tiny_run, places, tmp_path, capsys):
    """One byte of a mask that no detector reads, as long as before, with the date it had."""
    data, settings = tmp_path / "data", [w for w in TINY if w.startswith(("dataset", "preprocessing", "workers"))]
    shutil.copytree(tiny_run.parents[1] / "data", data)
    path = sorted(data.glob("phantom-*/*/lesion_mask/*.nii.gz"))[0]
    whole, stat = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert evaluate.main(["run=tiny", f"data_dir={data}", places[1]]) == 2
    refused(capsys, f"{path}: not as prepared", "anomaly3d.prepare")
    shutil.rmtree(path.parents[1] / "preview")
    assert prepare.main([*settings, f"data_dir={data}"]) == 0
    said = capsys.readouterr().out
    assert f"{path} is not as it was prepared: it is made again" in said
    assert "1 of 12 scans to do" in said
    look = Path(next(line for line in said.splitlines() if "first scan to look at" in line).split(": ")[-1])
    assert (look.parent.name, look.suffix) == ("preview", ".png")
    assert Image.open(look).size[0] > 30
    assert path.read_bytes() == whole
