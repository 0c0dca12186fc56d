import os
from dataclasses import replace

import pytest

from anomaly3d.preprocessing.outcome import (
    Outcome,
    Sources,
    adopted,
    files_behind,
    finished,
    keep,
    prepared_file,
)
from anomaly3d.scans.recipe import write_recipe
from anomaly3d.system.files import sha256

KINDS = ("image", "brain_mask", "transform")


@pytest.fixture
def prepared(tmp_path):
    """A scan with its prepared files and its outcome."""
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"a scan")
    out = tmp_path / "data"
    for kind in KINDS:
        path = prepared_file(out, kind, "a")
        path.parent.mkdir(parents=True)
        path.write_bytes(f"{kind} of a".encode())
    sources = Sources("a", str(scan))
    files = {kind: sha256(prepared_file(out, kind, "a")) for kind in KINDS}
    return sources, out, keep(Outcome("a", "", {}, sources.fingerprint(out), files=files), out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_byte_of_any_prepared_file_is_found(prepared, kind, capsys):
    sources, out, outcome = prepared
    assert finished(sources, out) == outcome
    path = prepared_file(out, kind, "a")
    path.write_bytes(path.read_bytes()[:-1] + b"A")  # as long as before
    assert outcome.damaged(out) == [path]
    assert finished(sources, out) is None
    assert f"{path} is not as it was prepared: it is made again" in capsys.readouterr().out
    path.unlink()
    assert outcome.damaged(out) == [path]


def test_a_slice_that_is_replaced_by_an_older_one_of_its_size_is_noticed(tmp_path):
    for k in range(3):
        (tmp_path / f"{k}.dcm").write_bytes(b"a slice")
        os.utime(tmp_path / f"{k}.dcm", ns=(1000, 1000 + k))
    sources = Sources("a", str(tmp_path))
    before = sources.fingerprint(tmp_path / "data")
    (tmp_path / "1.dcm").write_bytes(b"A SLICE")
    os.utime(tmp_path / "1.dcm", ns=(10, 10))
    assert sources.fingerprint(tmp_path / "data") != before


def test_a_copied_scan_is_prepared_no_second_time_and_then_known_where_it_lies(tmp_path):
    there, here = (tmp_path / "data" / name / "hash" for name in ("cohort 1", "cohort 2"))
    scans = [tmp_path / name / "scan.nii.gz" for name in ("site", "copy")]
    for scan in scans:
        scan.parent.mkdir()
        scan.write_bytes(b"a scan")
    first, copy = (Sources("a", str(scan)) for scan in scans)
    for kind in KINDS:
        path = prepared_file(there, kind, "a")
        path.parent.mkdir(parents=True)
        path.write_bytes(f"{kind} of a".encode())
    files = {kind: sha256(prepared_file(there, kind, "a")) for kind in KINDS}
    keep(Outcome("a", "", {"noise_hu": 3.0}, first.fingerprint(there), files=files, digest=first.digest()), there)
    found = adopted(copy, here)
    assert found is not None
    assert (found.quality, found.files) == ({"noise_hu": 3.0}, files)
    assert finished(copy, here) == found
    scans[1].write_bytes(b"another scan")
    assert finished(copy, here) is None
    assert adopted(copy, here) is None


def test_two_scans_of_one_size_and_date_that_changed_names_are_told_apart(tmp_path):
    """As of an archive that keeps whole seconds, when a manifest that mixed them up has been corrected."""
    for name in ("x.nii", "y.nii"):
        (tmp_path / name).write_bytes(name.encode())
        os.utime(tmp_path / name, (1e9, 1e9))
    before, after = (Sources("a", str(tmp_path / name)) for name in ("x.nii", "y.nii"))
    out = tmp_path / "data" / "cohort" / "hash"
    keep(Outcome("a", "", {}, before.fingerprint(out), digest=before.digest()), out)
    assert finished(before, out)
    assert finished(after, out) is None
    assert adopted(after, out) is None


def test_of_an_earlier_version_only_sizes_are_known(prepared):
    """So that what it prepared is not prepared again."""
    sources, out, outcome = prepared
    old = keep(replace(outcome, files={kind: prepared_file(out, kind, "a").stat().st_size for kind in KINDS}), out)
    assert finished(sources, out) == old
    prepared_file(out, "image", "a").write_bytes(b"cut")
    assert finished(sources, out) is None


def test_behind_a_recipe_are_the_files_that_it_lists_and_behind_a_folder_all_that_is_seen(tmp_path):
    slices = [tmp_path / "study" / name for name in ("1.dcm", "2.dcm")]
    slices[0].parent.mkdir()
    for path in slices:
        path.write_bytes(path.name.encode())
    (tmp_path / "study" / ".hidden").write_bytes(b"")
    recipe, missing = tmp_path / "a.recipe", tmp_path / "b.recipe"
    write_recipe(recipe, "anomaly3d.scans.dicom.read_dicom_files", files=[str(path) for path in slices])
    assert files_behind(recipe) == slices == sorted(files_behind(tmp_path / "study"))
    assert files_behind(missing) == [missing]
    before = Sources("a", str(recipe)).digest()
    slices[1].write_bytes(b"3.dcm")
    assert Sources("a", str(recipe)).digest() != before


def test_a_mask_that_moved_to_another_column_is_another_scan(tmp_path):
    for name in ("scan", "mask"):
        (tmp_path / f"{name}.nii.gz").write_bytes(name.encode())
    paths = str(tmp_path / "scan.nii.gz"), str(tmp_path / "mask.nii.gz")
    brain, lesion = (Sources("a", paths[0], **{kind: paths[1]}) for kind in ("brain_mask", "lesion_mask"))
    assert brain.fingerprint(tmp_path) != lesion.fingerprint(tmp_path)
    assert brain.digest() != lesion.digest()
