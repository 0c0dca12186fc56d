"""Image files as they come: the same voxels at the same places from every format, or what is wrong with the file."""

import contextlib
import errno
import gzip
import os
import time
import tracemalloc
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from anomaly3d.errors import PassingTrouble, UnreadableScan
from anomaly3d.scans import image_files
from anomaly3d.scans.image_files import load_image
from anomaly3d.scans.readers import read_image, read_scan

AFFINE = np.array([[-2.0, 0.1, 0, 30.0], [0.1, 3.0, 0, -20.0], [0, 0, 4.0, -15.0], [0, 0, 0, 1]])


@pytest.fixture
def image():
    data = np.random.default_rng(0).integers(-1000, 2000, (11, 9, 8)).astype(np.int16)
    return nib.nifti1.Nifti1Image(data, AFFINE)


def stored(image, path, change=lambda header: None):
    """A file of the image with a changed header."""
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    header = nib.nifti1.Nifti1Header(bytes(raw[:348]), check=False)
    change(header)
    raw[:348] = header.binaryblock
    path.write_bytes(bytes(raw))
    return path


def is_the_image(path, image):
    found = read_image(path)
    while found.ndim > 3:
        found = found.slicer[..., 0]
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-3)
    np.testing.assert_allclose(np.asarray(found.dataobj), np.asarray(image.dataobj), atol=0.02)


def save_itk(image, path):
    made = sitk.GetImageFromArray(np.asarray(image.dataobj).T)
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    step = np.linalg.norm(lps[:3, :3], axis=0)
    made.SetSpacing(step.tolist())
    made.SetDirection((lps[:3, :3] / step).ravel().tolist())
    made.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(made, str(path))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mgz", "a.mgh", "a.nrrd", "a.mha", "a.mhd", "a.nhdr", "a.hdr"])
def test_every_format_gives_the_same_voxels_at_the_same_places(tmp_path, image, name):
    orthogonal = nib.nifti1.Nifti1Image(image.dataobj, np.diag([-2.0, -3.0, 4.0, 1.0]) + 0.0)
    path = tmp_path / name
    if name.endswith((".mgz", ".mgh")):
        nib.save(nib.MGHImage(np.asarray(image.dataobj).astype(np.float32), orthogonal.affine), path)
    elif name.endswith(".hdr"):
        nib.save(nib.nifti1.Nifti1Pair(np.asarray(image.dataobj), orthogonal.affine), path)
    elif name.endswith((".nii", ".gz")):
        nib.save(orthogonal, path)
    else:
        save_itk(orthogonal, path)
    is_the_image(path, orthogonal)


def test_an_nrrd_file_must_say_where_right_and_left_are(tmp_path, image):
    orthogonal = nib.nifti1.Nifti1Image(image.dataobj, np.diag([-2.0, -3.0, 4.0, 1.0]) + 0.0)
    path = tmp_path / "a.nrrd"
    save_itk(orthogonal, path)
    written = path.read_bytes()
    path.write_bytes(written.replace(b"space: left-posterior-superior", b"space: right-anterior-superior"))
    turned = nib.nifti1.Nifti1Image(image.dataobj, np.diag([-1.0, -1, 1, 1]) @ orthogonal.affine)
    is_the_image(path, turned)
    for space in (b"space: scanner-xyz", b"space dimension: 3"):
        path.write_bytes(written.replace(b"space: left-posterior-superior", space))
        with pytest.raises(UnreadableScan, match="does not say where right and left are"):
            load_image(path)


@pytest.mark.parametrize("field", [b"TransformMatrix", b"ElementSpacing"])
def test_a_metaimage_must_say_how_it_lies_and_how_large_it_is(tmp_path, image, field):
    path = tmp_path / "a.mha"
    save_itk(nib.nifti1.Nifti1Image(image.dataobj, np.diag([-2.0, -3.0, 4.0, 1.0]) + 0.0), path)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(line for line in lines if not line.startswith(field)))
    with pytest.raises(UnreadableScan, match=f"has no {field.decode()}"):
        load_image(path)


def test_an_mgh_file_must_say_where_right_and_left_are(tmp_path, image):
    path = tmp_path / "a.mgh"
    nib.save(nib.MGHImage(np.asarray(image.dataobj).astype(np.float32), np.diag([-2.0, -3.0, 4.0, 1.0]) + 0.0), path)
    path.write_bytes(path.read_bytes()[:28] + b"\0\0" + path.read_bytes()[30:])
    with pytest.raises(UnreadableScan, match="goodRASFlag"):
        load_image(path)


@pytest.mark.parametrize(("number", "passing"), [(errno.EIO, True), (None, False)])
def test_a_disk_that_fails_is_no_damage_of_the_file(tmp_path, image, monkeypatch, number, passing):
    def fail(path):
        raise OSError(number, "Input/output error") if number else OSError("no gzip")

    nib.save(image, tmp_path / "a.nii")
    monkeypatch.setattr(image_files, "first_bytes", fail)
    with pytest.raises(UnreadableScan) as told:
        load_image(tmp_path / "a.nii")
    assert isinstance(told.value, PassingTrouble) == passing


def test_compression_is_seen_in_the_content_not_in_the_name(tmp_path, image):
    nib.save(image, tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(raw)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(raw))
    is_the_image(tmp_path / "plain.nii.gz", image)
    is_the_image(tmp_path / "packed.nii", image)
    (tmp_path / "twice.nii.gz").write_bytes(gzip.compress(gzip.compress(raw)))
    with pytest.raises(UnreadableScan, match="compressed twice"):
        load_image(tmp_path / "twice.nii.gz")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.nii", "deep/a.nii")
    is_the_image(tmp_path / "a.zip", image)


def test_number_types_scaling_byte_order_and_nifti_2(tmp_path, image):
    data = np.asarray(image.dataobj)
    shifted = nib.nifti1.Nifti1Image((data.astype(np.int32) + 1024).astype(np.uint16), AFFINE)
    shifted.header.set_slope_inter(1, -1024)
    for made in (
        nib.nifti1.Nifti1Image(data.astype(np.float64), AFFINE),
        nib.nifti1.Nifti1Image(data, AFFINE, nib.nifti1.Nifti1Header(endianness=">")),
        nib.nifti2.Nifti2Image(data, AFFINE),
        nib.nifti1.Nifti1Image(data[..., None, None], AFFINE),
        shifted,
    ):
        nib.save(made, tmp_path / "a.nii")
        is_the_image(tmp_path / "a.nii", image)


def test_an_empty_sform_leaves_the_place_to_the_qform(tmp_path):
    image = nib.nifti1.Nifti1Image(np.zeros((9, 9, 9), np.int16), np.diag([-2.0, 3.0, 4.0, 1.0]))
    image.set_qform(image.affine, 1)
    image.set_sform(image.affine, 1)

    def empty(header):
        header["srow_x"], header["srow_y"], header["srow_z"] = 0, 0, 0

    is_the_image(stored(image, tmp_path / "a.nii", empty), image)


def test_an_sform_that_mirrors_the_qform_is_told(tmp_path):
    affine = np.diag([2.0, 3.0, 5.0, 1.0])
    image = nib.nifti1.Nifti1Image(np.zeros((9, 10, 11), np.int16), affine)
    image.set_qform(affine, 1)
    nib.save(image, tmp_path / "same.nii")
    image.set_sform(np.diag([-1.0, 1, 1, 1]) @ affine, 1)
    nib.save(image, tmp_path / "mirrored.nii")
    told = [load_image(tmp_path / name).extra.get("read_as", "") for name in ("same.nii", "mirrored.nii")]
    assert told == ["", "its sform and qform mirror each other: right and left are taken from the sform"]


def test_millimetres_follow_the_unit_that_the_header_names(tmp_path, image):
    small = nib.nifti1.Nifti1Image(image.dataobj, np.diag([0.001, 0.001, 0.001, 1]) @ AFFINE)
    small.header.set_xyzt_units("meter")
    nib.save(small, tmp_path / "a.nii")
    is_the_image(tmp_path / "a.nii", image)
    nib.save(read_image(tmp_path / "a.nii"), tmp_path / "again.nii")  # with its own header, as maps are written
    is_the_image(tmp_path / "again.nii", image)


def test_a_header_that_contradicts_itself_is_refused(tmp_path, image):
    def halve(header):
        header["pixdim"][1:4] /= 2
        header["qform_code"] = 0

    with pytest.raises(UnreadableScan, match="contradicts itself"):
        load_image(stored(image, tmp_path / "a.nii", halve))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello", "not a NIfTI image"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"%PDF-1.7", "a PDF"),
        (b"<!DOCTYPE html>", "a download that failed"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x5c\x01\0\0" + bytes(400), "ANALYZE"),
        (gzip.compress(b"short", mtime=0), "not a NIfTI"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path, content, words):
    (tmp_path / "a.nii").write_bytes(content)
    with pytest.raises(UnreadableScan, match=words):
        load_image(tmp_path / "a.nii")


def test_a_huge_claimed_shape_is_refused_before_memory_is_asked_for(tmp_path, image):
    def grow(header):
        header["dim"][1:4] = 30000

    with pytest.raises(UnreadableScan, match="30000 x 30000 x 30000"):
        load_image(stored(image, tmp_path / "a.nii", grow))


def test_voxels_said_to_begin_far_behind_the_end_are_not_sought(tmp_path, image):
    def far(header):
        header["vox_offset"] = 1e12

    with pytest.raises(UnreadableScan, match="header is damaged"):
        load_image(stored(image, tmp_path / "a.nii", far))


def test_a_colour_image_and_a_missing_pair_are_named(tmp_path, image):
    colours = np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.nifti1.Nifti1Image(colours, AFFINE), tmp_path / "a.nii")
    with pytest.raises(UnreadableScan, match="colour"):
        load_image(tmp_path / "a.nii")
    nib.save(nib.nifti1.Nifti1Pair(np.asarray(image.dataobj), AFFINE), tmp_path / "b.hdr")
    (tmp_path / "b.img").unlink()
    with pytest.raises(UnreadableScan, match="does not exist"):
        load_image(tmp_path / "b.hdr")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may read everything")
def test_a_forbidden_file_says_so(tmp_path, image):
    nib.save(image, tmp_path / "a.nii")
    (tmp_path / "a.nii").chmod(0)
    with pytest.raises(UnreadableScan, match="permissions"):
        load_image(tmp_path / "a.nii")


def test_a_zip_bomb_and_a_locked_archive_are_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", bytes(10_000_000))
    monkeypatch.setattr("anomaly3d.scans.readers.LARGEST_ARCHIVE", 1e6)
    with pytest.raises(UnreadableScan, match="when unpacked"):
        read_scan(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("notes.txt", "nothing")
    with pytest.raises(UnreadableScan, match="0 image files"):
        read_scan(tmp_path / "b.zip")


ZEROS = gzip.compress(bytes(1 << 26), 1) * 16  # a gigabyte
CLAIMS = {  # a small file of zeros behind a header, and what the header claims
    "a small volume": lambda header: header["dim"].__setitem__(slice(1, 4), 8),
    "an endless extension": lambda header: header["dim"].__setitem__(slice(1, 4), 8),
    "no place for voxels": lambda header: header.__setitem__("vox_offset", 0),
    "a huge volume": lambda header: header["dim"].__setitem__(slice(1, 4), 30000),
    "many volumes": lambda header: header["dim"].__setitem__(slice(0, 8), (7, 64, 64, 64, 64, 64, 1, 1)),
}


@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("pair", [False, True])
def test_a_gzip_bomb_is_not_unpacked(tmp_path, image, claim, pair):
    """A megabyte that would be a gigabyte: at most what the header may claim, and the ends of it, come into memory."""
    header = image.header.copy()
    CLAIMS[claim](header)
    start = bytearray(header.binaryblock)
    start[344:348] = b"ni1\0" if pair else b"n+1\0"
    extension = b"\1\0\0\0" + (2**31 - 16).to_bytes(4, "little") + bytes(4)
    packed = gzip.compress(bytes(start) + (extension if claim != "a small volume" else bytes(4))) + ZEROS
    path = tmp_path / ("a.hdr.gz" if pair else "a.nii.gz")
    path.write_bytes(packed)
    (tmp_path / "a.img.gz").write_bytes(packed)
    tracemalloc.start()
    with contextlib.suppress(UnreadableScan):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 30e6
    tracemalloc.stop()
    if not pair:
        with pytest.raises(UnreadableScan, match=r"claims|damaged|contradicts"):
            read_image(path)


def test_an_mgz_bomb_is_refused_by_its_claim_before_it_is_sought_through(tmp_path):
    start = (1).to_bytes(4, "big") + (30000).to_bytes(4, "big") * 3 + (1).to_bytes(4, "big")
    (tmp_path / "a.mgz").write_bytes(gzip.compress(start) + ZEROS)
    started = time.process_time()
    with pytest.raises(UnreadableScan, match="30000 x 30000 x 30000 x 1"):
        load_image(tmp_path / "a.mgz")
    assert time.process_time() - started < 0.2  # seconds; unpacking it takes one


def test_a_zip_of_nothing_but_zeros_and_one_with_ways_out_write_nothing_elsewhere(tmp_path, image):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a.nii", bytes(200_000_000))
    with pytest.raises(UnreadableScan, match="when unpacked"):
        read_scan(tmp_path / "bomb.zip")
    nib.save(image, tmp_path / "a.nii")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for name in ("../../../../../../../../tmp/anomaly3d-out.txt", f"{tmp_path}/out.txt", "..\\out.txt"):
            archive.writestr(name, "out")
        archive.write(tmp_path / "a.nii", "../../../a.nii")
    is_the_image(tmp_path / "b.zip", image)
    assert not list(tmp_path.rglob("*out.txt"))
    assert not os.path.exists("/tmp/anomaly3d-out.txt")
