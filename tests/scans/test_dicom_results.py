"""Labels and maps as DICOM objects, read again by pydicom alone and held against the series' own slices."""

import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pydicom
import pytest

from anomaly3d.errors import UserError
from anomaly3d.scans.dicom import read_dicom
from anomaly3d.scans.dicom_results import LIMIT, STEP, on_slices, require_highdicom, series_of, write_results
from tests.conftest import SCANS
from tests.writers import small_head, write_series

NAMES = ["left frontal, extra-axial", "air"]


def tilted(d, k):
    """As a gantry tilted by 18.5 degrees writes."""
    d.ImageOrientationPatient = [1, 0, 0, 0, 0.948324, -0.317305]
    d.GantryDetectorTilt = "18.5"


def results_of(folder, out):
    """Labels of bone and air, and a map, of a series' own HU, written; the slices by their UID."""
    image = read_dicom(folder)
    hu = np.asarray(image.dataobj)
    labels = np.where(hu > 300, 1, np.where(hu < -500, 2, 0)).astype(np.int16)
    found = nib.nifti1.Nifti1Image((hu / 100).astype(np.float32), image.affine)
    write_results(out, folder, found, nib.nifti1.Nifti1Image(labels, image.affine), NAMES)
    slices = [pydicom.dcmread(path) for path in folder.glob("*.dcm")]
    return {d.SOPInstanceUID: d for d in slices}


def hu_of(d):
    return d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept)


def frames_of(path):
    """Each frame of an object with the UID of the slice it refers to, its corner, and its segment."""
    made = pydicom.dcmread(path)
    for pixels, group in zip(made.pixel_array, made.PerFrameFunctionalGroupsSequence, strict=True):
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        corner = group.PlanePositionSequence[0].ImagePositionPatient
        segment = group.get("SegmentIdentificationSequence")
        yield source.ReferencedSOPInstanceUID, corner, segment and segment[0].ReferencedSegmentNumber, pixels


def overlap(slices, path):
    """Dice of bone on each slice that has some."""
    found = []
    for uid, corner, segment, pixels in frames_of(path):
        if segment == 1:
            bone = hu_of(slices[uid]) > 300
            assert np.allclose(corner, slices[uid].ImagePositionPatient, atol=1e-3)
            found.append(2 * (bone & (pixels > 0)).sum() / (bone.sum() + (pixels > 0).sum()))
    return np.array(found)


@pytest.mark.parametrize(("edit", "least"), [(lambda d, k: None, 0.999), (tilted, 0.9)])
def test_segments_and_map_lie_on_the_series_own_slices(tmp_path, edit, least):
    series, out = tmp_path / "series", tmp_path / "out"
    write_series(series, small_head(), edit=edit, PatientName="Doe^Jane")
    slices = results_of(series, out)
    first = next(iter(slices.values()))
    for name, kind in (("clusters", "SEG"), ("anomaly_map", "RWV")):
        made = pydicom.dcmread(out / f"{name}.dcm")
        assert made.Modality in (kind, "OT")
        assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
        assert (made.StudyInstanceUID, made.PatientName) == (first.StudyInstanceUID, "Doe^Jane")
        assert made.SeriesInstanceUID != first.SeriesInstanceUID
    segments = pydicom.dcmread(out / "clusters.dcm").SegmentSequence
    assert [s.SegmentLabel for s in segments] == ["1 left frontal, extra-axial", "2 air"]
    assert all(s.SegmentAlgorithmType == "AUTOMATIC" for s in segments)
    dice = overlap(slices, out / "clusters.dcm")
    assert np.median(dice) > least
    made = pydicom.dcmread(out / "anomaly_map.dcm")
    unit = made.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence[0]
    assert (unit.RealWorldValueSlope, unit.RealWorldValueIntercept) == (STEP, -LIMIT)
    apart = [
        np.median(np.abs(p * STEP - LIMIT - hu_of(slices[uid]) / 100)) for uid, _, _, p in frames_of(made.filename)
    ]
    assert len(apart) == len(slices)
    assert np.median(apart) < (0.006 if least > 0.99 else 0.6)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dicom3tools, which judges DICOM objects, is not installed")
def test_another_program_finds_no_error_in_them_but_their_sources(tmp_path):
    write_series(tmp_path / "series", small_head(), edit=tilted, PatientName="Doe^Jane", BodyPartExamined="HEAD")
    results_of(tmp_path / "series", tmp_path / "out")

    def errors(path):
        said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False).stderr
        assert "</" in said  # it read the file
        return {line for line in said.splitlines() if line.startswith("Error")}

    there = errors(next((tmp_path / "series").glob("*.dcm")))
    for name in ("clusters", "anomaly_map"):
        assert errors(tmp_path / "out" / f"{name}.dcm") <= there


def test_every_label_of_many_has_its_segment_and_one_that_no_slice_meets_is_empty(tmp_path):
    write_series(tmp_path / "series", small_head())
    image = read_dicom(tmp_path / "series")
    labels = np.zeros(image.shape, np.int16)
    labels[10:20, 10:40, 12] = np.arange(1, 301).reshape(10, 30)
    drawn = nib.nifti1.Nifti1Image(labels, image.affine)
    write_results(tmp_path, tmp_path / "series", None, drawn, [f"place {n}" for n in range(1, 302)])
    assert len(pydicom.dcmread(tmp_path / "clusters.dcm").SegmentSequence) == 301
    frames = {segment: int(pixels.sum()) for _, _, segment, pixels in frames_of(tmp_path / "clusters.dcm")}
    assert frames == dict.fromkeys(range(1, 301), 1)


def test_made_anew_it_is_the_same_object(tmp_path):
    write_series(tmp_path / "series", small_head())
    for name in "ab":
        results_of(tmp_path / "series", tmp_path / name)
    first, again = (pydicom.dcmread(tmp_path / name / "clusters.dcm") for name in "ab")
    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert first.SOPInstanceUID != pydicom.dcmread(tmp_path / "a" / "anomaly_map.dcm").SOPInstanceUID


def test_what_is_not_dicom_gets_none_and_no_clusters_no_segmentation(tmp_path, capsys):
    head = small_head()
    nib.save(head, tmp_path / "head.nii.gz")
    write_results(tmp_path / "out", tmp_path / "head.nii.gz", head, head, NAMES)
    assert not (tmp_path / "out").exists()
    assert "out: no DICOM results: it is no DICOM folder or file" in capsys.readouterr().out
    write_series(tmp_path / "nameless", head, edit=lambda d, k: delattr(d, "SeriesInstanceUID"))
    write_results(tmp_path / "out", tmp_path / "nameless", head, head, NAMES)
    assert not (tmp_path / "out").exists()
    assert "its files do not say which series they are" in capsys.readouterr().out
    write_series(tmp_path / "series", head)
    write_results(tmp_path / "out", tmp_path / "series", head, head, [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["anomaly_map.dcm"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientSex", "U"),
        ("PatientSex", "m"),
        ("PatientBirthDate", "1960-01-01"),
        ("PatientBirthDate", "ANON"),
        ("StudyTime", "12:30:11"),
        ("StudyDate", "0000"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_removes_names_may_leave_values_that_are_none(tmp_path, name, value):
    """They are left empty; who is shown stays."""

    def edit(d, k):
        d.PatientID = "P7"
        d.FrameOfReferenceUID = f"1.2.{k}"  # of each slice another, as some of these programs write it
        setattr(d, name, value)

    write_series(tmp_path / "series", small_head(), edit=edit)
    results_of(tmp_path / "series", tmp_path / "out")
    for made in ("clusters", "anomaly_map"):
        found = pydicom.dcmread(tmp_path / "out" / f"{made}.dcm")
        assert not found[name].value
        assert found.PatientID == "P7"


def test_headers_that_cannot_be_referred_to_are_said_without_their_values(tmp_path, capsys):
    write_series(tmp_path / "series", small_head(), edit=lambda d, k: delattr(d, "SOPClassUID"))
    results_of(tmp_path / "series", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "out: no DICOM results: its headers are not as DICOM wants them" in capsys.readouterr().out
    write_results(tmp_path / "out", tmp_path / "series", None, None, [])
    assert "there is no standardised map of it" in capsys.readouterr().out


def test_without_highdicom_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match=r"dicom=true takes highdicom: pip install 'anomaly3d\[dicom\]'"):
        require_highdicom()


@pytest.mark.skipif(not (SCANS / "ge_tilted_dicom").exists(), reason="the real scans are not here")
def test_segments_lie_on_the_slices_of_a_tilted_unevenly_spaced_real_series(tmp_path):
    dice = overlap(results_of(SCANS / "ge_tilted_dicom", tmp_path), tmp_path / "clusters.dcm")
    assert len(dice) >= 25
    assert dice.min() > 0.85
    assert np.median(dice) > 0.95


def test_no_slice_is_lost_to_rounding(tmp_path):
    """The affine of a converter in float32 puts the outermost centres a millionth beyond the grid."""
    write_series(tmp_path / "series", small_head())
    image = read_dicom(tmp_path / "series")
    moved = image.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ np.full(3, 1e-6)
    everywhere = nib.nifti1.Nifti1Image(np.ones(image.shape, np.float32), moved)
    for order in (0, 1):
        assert (on_slices(everywhere, series_of(tmp_path / "series"), order) == 1).all()
