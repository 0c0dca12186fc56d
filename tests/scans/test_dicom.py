"""DICOM as it comes: which files are the scan, and whether its HU and places are those that were written."""

import shutil
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid
from scipy import ndimage

from anomaly3d.cohorts.folder import find_scans
from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.dicom import read_dicom
from anomaly3d.scans.readers import read_ct, read_scan
from tests.writers import small_head, write_enhanced, write_series


@pytest.fixture(scope="module")
def head():
    return small_head()


def is_the_head(path, head):
    """The scan at a path has the voxels of the head at their places."""
    scan = read_scan(path)
    assert scan.data.shape == head.shape
    np.testing.assert_allclose(scan.affine, head.affine, atol=0.02)
    np.testing.assert_allclose(scan.data, np.asarray(head.dataobj).clip(-1024, 3071), atol=0.51)
    return scan


@pytest.mark.parametrize("name", ["{:03d}.dcm", "HEAD.CT.0003.{:04d}.IMA", "I{:d}0", "{:d}"])
def test_files_are_known_by_their_content_whatever_they_are_called(tmp_path, head, name):
    write_series(tmp_path / "S1" / "S20", head, name=name)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "S1" / "._001.dcm").write_bytes(b"\0\5\26\7 resource fork")
    (found,) = find_scans(tmp_path)
    assert found.path == tmp_path / "S1" / "S20"
    is_the_head(tmp_path, head)


def test_a_file_without_preamble_is_dicom(tmp_path, head):
    for path in write_series(tmp_path, head):
        path.write_bytes(path.read_bytes()[132:])
        path.rename(path.with_suffix(""))
    is_the_head(tmp_path, head)


def test_the_axial_soft_tissue_series_of_a_study_is_used_and_the_others_are_named(tmp_path, head):
    study = generate_uid()
    squeeze = np.diag([1, 1, 5 / np.linalg.norm(head.affine[:3, 2]), 1])
    head = nib.nifti1.Nifti1Image(np.asarray(head.dataobj), head.affine @ squeeze)  # 24 slices of 5 mm
    finer = nib.nifti1.Nifti1Image(np.repeat(np.asarray(head.dataobj), 2, 2), head.affine @ np.diag([1, 1, 0.5, 1]))
    scout = nib.nifti1.Nifti1Image(np.asarray(head.dataobj)[:, 30:31], head.affine)

    def add(name, image=head, **tags):
        write_series(tmp_path, image, name=name + "{:03d}", study=study, **tags)

    def outside(d, k):
        d.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"  # a structured report
        del d.PixelData, d.Rows, d.Columns, d.ImagePositionPatient

    add("scout", scout, plane="coronal", SeriesNumber=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    add("bone", finer, SeriesNumber=2, ConvolutionKernel="H60s", SeriesDescription="HEAD 2.5")
    add("soft", SeriesNumber=7)
    add("thin", finer, SeriesNumber=8, SeriesDescription="HEAD 2.5 thin")
    add("coronal", plane="coronal", SeriesNumber=5, ImageType=["DERIVED", "SECONDARY", "MPR"])
    add("contrast", SeriesNumber=4, SeriesDescription="HEAD 5.0 POST CONTRAST")
    add("agent", SeriesNumber=6, SeriesDescription="HEAD 5.0", ContrastBolusAgent="Iomeprol")
    add("neck", finer, SeriesNumber=9, SeriesDescription="C-SPINE 2.0")
    add("map", SeriesNumber=10, ImageType=["DERIVED", "PRIMARY", "AXIAL", "CT_SOM5 PERFUSION"])
    add("mr", SeriesNumber=11, Modality="MR")
    write_series(tmp_path, scout, "coronal", "report{:d}", study, outside, SeriesNumber=12, Modality="SR")
    scan = is_the_head(tmp_path, head)
    chosen, others = scan.read_as.split(" of a study; passed over: ")
    assert chosen.startswith("series 7 (24 axial slices")
    told = dict(other.split(": ") for other in others.split("; "))
    assert {name.split(" (")[0]: reason for name, reason in told.items()} == {
        "series 1": "a scout",
        "series 2": "a sharp kernel for bone",
        "series 8": "the same head in other slices, or later",
        "series 5": "coronal, not axial",
        "series 4": "with contrast agent",
        "series 6": "with contrast agent",
        "series 9": "not of the head",
        "series 10": "a map or projection, not CT numbers",
        "series 11": "not CT but MR",
        "series 12": "not CT but SR",
    }
    assert "HEAD" not in scan.read_as  # free text may name the patient


def test_scouts_inside_the_series_are_left_out(tmp_path, head):
    series, study = generate_uid(), generate_uid()
    write_series(tmp_path, head, study=study, SeriesInstanceUID=series)
    scout = nib.nifti1.Nifti1Image(np.asarray(head.dataobj)[:, 30:31], head.affine)
    kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path, scout, "coronal", "s{:d}", study, SeriesInstanceUID=series, ImageType=kind)
    assert "a scout" in is_the_head(tmp_path, head).read_as


@pytest.mark.parametrize("described", ["HEAD without contrast", "CT PRE CONTRAST 5MM", "Schädel nativ", "CT Plain"])
def test_words_that_say_there_is_no_contrast_count_more_than_the_agent_field(tmp_path, head, described):
    write_series(tmp_path, head, SeriesDescription=described, ContrastBolusAgent="APPLIED")
    is_the_head(tmp_path, head)


@pytest.mark.parametrize("missing", [[11, 12, 13], [12], [9, 14]])
def test_missing_slices_are_a_reason_also_where_numbers_were_written_anew(tmp_path, head, missing):
    paths = write_series(tmp_path, head, edit=lambda d, k: delattr(d, "InstanceNumber"))
    for k in missing:
        paths[k].unlink()
    with pytest.raises(UnreadableScan, match=r"slices are missing: after slice \d+ of \d+"):
        read_dicom(tmp_path)


def test_slices_whose_distance_changes_are_evened_not_refused(tmp_path, head):
    """Fine slices at the skull base, thick ones above: 12 of 6 mm, then 6 of 12 mm."""
    paths = write_series(tmp_path, head)
    step = float(head.header.get_zooms()[2])
    for k in range(13, 24, 2):
        paths[k].unlink()
    for k in range(12, 24, 2):
        d = pydicom.dcmread(paths[k])
        d.SliceThickness = f"{2 * step:.3f}"
        d.save_as(paths[k])
    scan = read_scan(tmp_path)
    assert scan.spacing[2] * (scan.data.shape[2] - 1) == pytest.approx(23 * step, abs=1.5 * step)
    fine = np.linalg.inv(scan.affine) @ head.affine
    there = fine[2, 2] * np.arange(11) + fine[2, 3]
    same = ndimage.map_coordinates(scan.data[32, 32], [there], order=1)
    assert np.corrcoef(same, np.asarray(head.dataobj)[32, 32, :11])[0, 1] > 0.9


def test_every_slice_twice_is_one_series(tmp_path, head):
    for path in write_series(tmp_path, head):
        shutil.copyfile(path, path.with_name("copy" + path.name))
    is_the_head(tmp_path, head)


def test_two_acquisitions_in_a_series_are_two_scans_and_the_first_is_used(tmp_path, head):
    series, study = generate_uid(), generate_uid()
    for number, image in ((2, small_head(2)), (1, head)):
        tags = {"SeriesInstanceUID": series, "AcquisitionNumber": number}
        write_series(tmp_path, image if number == 1 else moved(image, head), name=f"{number}-{{}}", study=study, **tags)
    is_the_head(tmp_path, head)


def moved(image, to):
    """Voxels of one head on the grid of another."""
    return nib.nifti1.Nifti1Image(np.resize(np.asarray(image.dataobj), to.shape), to.affine)


def test_different_pixels_at_one_place_are_a_reason(tmp_path, head):
    series, study = generate_uid(), generate_uid()
    for name in "ab":
        write_series(tmp_path, head, name=name + "{}", study=study, SeriesInstanceUID=series)
    with pytest.raises(UnreadableScan, match="24 DICOM slices lie where another"):
        read_dicom(tmp_path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_slices_are_read(tmp_path, head, syntax):
    write_series(tmp_path, head, syntax=syntax)
    is_the_head(tmp_path, head)


def test_jpeg_lossless_slices_of_old_archives_are_read(tmp_path, head):
    def compress(d, k):
        pixels = np.frombuffer(d.PixelData, np.uint16).reshape(1, d.Rows, d.Columns)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.SetFileName(str(tmp_path / "one.dcm"))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(sitk.GetImageFromArray(pixels))
        made = pydicom.dcmread(tmp_path / "one.dcm")
        d.file_meta.TransferSyntaxUID = made.file_meta.TransferSyntaxUID
        d["PixelData"] = made["PixelData"]
        d.BitsStored, d.HighBit = made.BitsStored, made.HighBit

    paths = write_series(tmp_path / "in", head, edit=compress)
    assert "JPEG Lossless" in pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID.name
    is_the_head(tmp_path / "in", head)


def test_every_slice_has_its_own_intercept(tmp_path, head):
    def signed(d, k):
        if k % 2:
            stored = np.frombuffer(d.PixelData, np.uint16).astype(np.int32) - 1024
            d.PixelData, d.PixelRepresentation, d.RescaleIntercept = stored.astype(np.int16).tobytes(), 1, "0"
            d.BitsStored, d.HighBit = 16, 15

    write_series(tmp_path, head, edit=signed)
    is_the_head(tmp_path, head)


def test_stripped_tags_leave_the_order_to_positions(tmp_path, head):
    def strip(d, k):
        for tag in ("InstanceNumber", "SeriesNumber", "SeriesDescription", "Manufacturer", "AcquisitionNumber"):
            delattr(d, tag)
        del d.StudyDate, d.StudyTime, d.SliceThickness, d.ImageType

    names = np.random.default_rng(0).permutation(1000)
    for k, path in enumerate(write_series(tmp_path, head, edit=strip)):
        path.rename(path.with_name(f"ID_{names[k]:04d}.dcm"))
    is_the_head(tmp_path, head)


def test_an_enhanced_multi_frame_file_is_a_scan(tmp_path, head):
    write_enhanced(tmp_path / "in" / "volume", head)
    is_the_head(tmp_path / "in", head)
    is_the_head(tmp_path / "in" / "volume", head)


@pytest.mark.parametrize(("change", "told"), [("order", "in disorder"), ("slopes", "each with a slope of its own")])
def test_frames_that_dcm2niix_would_mistake_are_refused(tmp_path, head, change, told):
    path = tmp_path / "volume"
    write_enhanced(path, head)
    found = pydicom.dcmread(path)
    frames = found.PerFrameFunctionalGroupsSequence
    if change == "order":
        order = np.random.default_rng(0).permutation(len(frames))
        found.PerFrameFunctionalGroupsSequence = [frames[k] for k in order]
        found.PixelData = found.pixel_array[order].tobytes()
    else:
        del found.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
        for k, frame in enumerate(frames):
            scale = pydicom.Dataset()
            scale.RescaleIntercept, scale.RescaleSlope = "0", str(1 + k % 2)
            frame.PixelValueTransformationSequence = [scale]
    found.save_as(path)
    with pytest.raises(UnreadableScan, match=f"a DICOM file of {len(frames)} frames, {told}"):
        read_scan(path)


def test_a_field_of_view_that_moves_within_a_series_is_refused(tmp_path, head):
    """dcm2niix would take it for a tilt and shear the head."""

    def move(d, k):
        x, y, z = map(float, d.ImagePositionPatient)
        d.ImagePositionPatient = [f"{x:.4f}", f"{y + 12 * (k == 20):.4f}", f"{z:.4f}"]

    write_series(tmp_path, head, edit=move)
    with pytest.raises(UnreadableScan, match=r"lie up to 10\.7 mm beside a straight line"):
        read_scan(tmp_path)


@pytest.mark.parametrize("number", [None, 1])
def test_slices_without_numbers_of_their_own_are_read(tmp_path, head, number):
    write_series(tmp_path, head, InstanceNumber=number)
    is_the_head(tmp_path, head)


def test_directions_on_both_sides_of_a_rounding_are_one_series(tmp_path, head):
    def jitter(d, k):
        a = 0.00499 + 0.00002 * (k % 2)
        d.ImageOrientationPatient = [f"{value:.6f}" for value in (1, a, 0, -a, 1, 0)]

    write_series(tmp_path, head, edit=jitter)
    scan = read_scan(tmp_path)
    assert scan.data.shape == head.shape
    assert scan.read_as == ""


def test_a_zip_archive_of_a_study_is_a_scan(tmp_path, head):
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in write_series(tmp_path / "in", head, name="I{}"):
            archive.write(path, f"disc/S1/{path.name}")
    is_the_head(tmp_path / "study.zip", head)
    assert [found.path.name for found in find_scans(tmp_path)] == ["study.zip", "in"]


@pytest.mark.parametrize("tilt", [18.5, -12.0])
@pytest.mark.parametrize("said", [True, False])
def test_gantry_tilt_is_straightened_by_positions_also_where_its_tag_is_gone(tmp_path, head, tilt, said):
    """A sheared stack: slices are perpendicular to the tilted gantry, the table moves along z."""
    angle = np.deg2rad(tilt)

    def shear(d, k):
        d.ImageOrientationPatient = [1, 0, 0, 0, f"{np.cos(angle):.6f}", f"{-np.sin(angle):.6f}"]
        if said:
            d.GantryDetectorTilt = f"{tilt:.1f}"

    write_series(tmp_path, head, edit=shear)
    scan = read_ct(tmp_path)
    square = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    np.testing.assert_allclose(square.T @ square, np.eye(3), atol=1e-3)  # no shear is left


def test_screens_reports_and_thorax_are_named_for_what_they_are(tmp_path, head):
    capture = "1.2.840.10008.5.1.4.1.1.7"
    colour = {"SOPClassUID": capture, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "BitsAllocated": 8}
    colour["PixelData"] = bytes(64 * 64 * 3)
    write_series(tmp_path / "screens", head, **colour)
    with pytest.raises(UnreadableScan, match=r"no series is a non-contrast CT of the head: .*pictures of a screen"):
        read_dicom(tmp_path / "screens")
    write_series(tmp_path / "post", head, SeriesDescription="CTA HEAD")
    with pytest.raises(UnreadableScan, match="with contrast agent"):
        read_dicom(tmp_path / "post")


def test_two_studies_in_a_folder_are_two_scans(tmp_path, head):
    for name in "ab":
        write_series(tmp_path, head, name=name + "{}")
    with pytest.raises(UnreadableScan, match="2 DICOM studies"):
        read_dicom(tmp_path)
    assert [len(found.files) for found in find_scans(tmp_path)] == [24, 24]


@pytest.mark.parametrize("keep", [0, 100, 700, 5000])
def test_a_slice_that_is_cut_short_is_a_reason(tmp_path, head, keep):
    paths = write_series(tmp_path, head)
    paths[5].write_bytes(paths[5].read_bytes()[:keep])
    with pytest.raises(UnreadableScan, match="damaged"):
        read_dicom(tmp_path)


def test_wrapped_values_are_refused(tmp_path, head):
    def wrap(d, k):
        stored = np.frombuffer(d.PixelData, np.uint16).astype(np.int32) - 1024
        d.PixelData, d.RescaleIntercept = (stored & 0xFFF).astype(np.uint16).tobytes(), "0"

    write_series(tmp_path, head, edit=wrap)
    with pytest.raises(UnreadableScan, match=r"not in HU.*wrapped"):
        read_ct(tmp_path)


def test_compressed_slices_that_claim_a_huge_picture_are_not_unpacked(tmp_path, head):
    for path in write_series(tmp_path, head, syntax=RLELossless):
        d = pydicom.dcmread(path)
        d.Rows = d.Columns = 65535
        d.save_as(path)
    with pytest.raises(UnreadableScan, match="claims a shape of 65535 x 65535 x 24"):
        read_scan(tmp_path)


def test_a_deflated_file_is_not_inflated(tmp_path, head):
    """Some hundred kilobytes that would be 100 MB of a private tag."""
    for path in write_series(tmp_path, head)[:1]:
        d = pydicom.dcmread(path)
        d.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        d.add_new((0x0009, 0x1001), "OB", bytes(100_000_000))
        d.save_as(path)
    del d
    tracemalloc.start()
    with pytest.raises(UnreadableScan, match="damaged"):
        read_scan(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
