"""Scans that are broken in every way files break: a seed gives one damaged input."""

import gzip
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom

from tests.writers import write_enhanced, write_series

WILD = (0, -1, 1e-30, -1e30, 1e38, float("nan"), float("inf"), 2**31 - 1)
HEADER_FIELDS = (  # of NIfTI-1: offset and struct code
    *((40 + 2 * k, "h") for k in range(8)),  # dim
    *((70, "h"), (72, "h"), (252, "h"), (254, "h"), (123, "b")),  # datatype, bitpix, form codes, units
    *((offset, "f") for offset in (*range(76, 108, 4), 108, 112, 116, *range(256, 280, 4), *range(280, 328, 4))),
)
TAGS = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "PixelData"),
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Modality", "InstanceNumber"),
    *("RescaleSlope", "RescaleIntercept", "SliceThickness", "ImageType", "SeriesNumber", "PatientID"),
)
VALUES = ("", "0", "-1", "1e40", "nan", "65535", "x" * 300, "0\\0\\0", "1\\0\\0\\0\\1\\0", "\x00", "é" * 20)


def damaged(seed: int, place: Path, head: nib.nifti1.Nifti1Image) -> str:
    """Write one damaged input into ``place``, alone there; returns the kind of damage."""
    rng = np.random.default_rng(seed)
    kinds: tuple[Callable[[np.random.Generator, Path, nib.nifti1.Nifti1Image], None], ...] = (
        cut_nifti,
        flip_header,
        wild_field,
        flip_gzip,
        bomb,
        other_format,
        broken_tag,
        missing_slices,
        flip_dicom,
        cut_dicom,
        enhanced,
        archive,
    )
    kind = kinds[seed % len(kinds)]
    place.mkdir(parents=True)
    kind(rng, place, head)
    return kind.__name__


def nifti_bytes(head: nib.nifti1.Nifti1Image) -> bytearray:
    return bytearray(head.to_bytes())


def flip(rng: np.random.Generator, raw: bytearray, end: int, count: int) -> bytearray:
    """Bits turned over in the first ``end`` bytes."""
    for k in rng.integers(0, min(end, len(raw)), count):
        raw[k] ^= 1 << int(rng.integers(8))
    return raw


def cut_nifti(rng, place, head):
    """A file that ends early, compressed or not."""
    packed = rng.random() < 0.5
    raw = gzip.compress(head.to_bytes()) if packed else head.to_bytes()
    keep = int(rng.integers(0, len(raw))) if rng.random() < 0.5 else int(rng.integers(0, 400))
    (place / ("a.nii.gz" if packed else "a.nii")).write_bytes(raw[:keep])


def flip_header(rng, place, head):
    """Bits of the header turned over."""
    (place / "a.nii").write_bytes(flip(rng, nifti_bytes(head), 352, int(rng.integers(1, 40))))


def wild_field(rng, place, head):
    """Fields of the header with absurd values: shapes, affines, scaling, types."""
    raw = nifti_bytes(head)
    for _ in range(int(rng.integers(1, 4))):
        offset, code = HEADER_FIELDS[int(rng.integers(len(HEADER_FIELDS)))]
        value = WILD[int(rng.integers(len(WILD)))]
        if code != "f":
            limit = 127 if code == "b" else 32767
            value = int(np.nan_to_num(value, posinf=limit, neginf=-limit).clip(-limit, limit))
        raw[offset : offset + struct.calcsize(code)] = struct.pack("<" + code, value)
    (place / "a.nii.gz").write_bytes(gzip.compress(bytes(raw), 1))


def flip_gzip(rng, place, head):
    """Bits of a compressed file turned over."""
    raw = bytearray(gzip.compress(head.to_bytes(), 1))
    (place / "a.nii.gz").write_bytes(flip(rng, raw, len(raw), int(rng.integers(1, 30))))


def bomb(rng, place, head):
    """Much from little: a header that claims much, with nothing or zeros behind."""
    raw = nifti_bytes(head)[:352]
    shape = rng.choice([64, 512, 2000, 30000, 32767], 3).tolist()
    raw[40:48] = struct.pack("<4h", 3, *shape)
    (place / "a.nii.gz").write_bytes(gzip.compress(bytes(raw) + bytes(int(rng.integers(0, 30)) << 20), 6))


def other_format(rng, place, head):
    """NRRD, MetaImage, MGH headers with nonsense, and plain noise under a scan's name."""
    kind = int(rng.integers(5))
    noise = rng.integers(0, 256, int(rng.integers(0, 3000)), np.uint8).tobytes()
    if kind == 0:
        size = rng.choice([0, -1, 64, 10**9], 3)
        text = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {size[0]} {size[1]} {size[2]}\nencoding: raw\n\n"
        (place / "a.nrrd").write_bytes(text.encode() + noise)
    elif kind == 1:
        (place / "a.mha").write_bytes(b"ObjectType = Image\nNDims = 3\nDimSize = 9 9 99999999\n" + noise)
    elif kind == 2:
        (place / "a.mgz").write_bytes(gzip.compress(struct.pack(">7i", 1, *rng.integers(-5, 2**30, 6)) + noise))
    elif kind == 3:
        (place / "a.hdr").write_bytes(bytes(nifti_bytes(head)[:344]) + b"ni1\0" + noise)
    else:
        (place / "a.nii").write_bytes(noise)


def broken_tag(rng, place, head):
    """A tag of some or all slices that is gone or nonsense."""
    tag, some = TAGS[int(rng.integers(len(TAGS)))], rng.random() < 0.5
    value = VALUES[int(rng.integers(len(VALUES)))] if rng.random() < 0.6 else None
    for path in write_series(place, head):
        if some and rng.random() < 0.7:
            continue
        d = pydicom.dcmread(path)
        if tag not in d:
            continue
        element = d[tag]
        if value is None:
            del d[tag]
        elif element.VR in ("US", "OW", "OB"):
            element._value = int(rng.integers(0, 65536)) if element.VR == "US" else b"\0\1" * int(rng.integers(0, 900))
        else:
            element._value = value
        d.save_as(path)


def missing_slices(rng, place, head):
    """Slices that did not arrive, or are empty."""
    for path in write_series(place, head):
        if rng.random() < 0.2:
            path.write_bytes(b"") if rng.random() < 0.5 else path.unlink()


def flip_dicom(rng, place, head):
    """Bits of headers turned over."""
    for path in write_series(place, head):
        if rng.random() < 0.5:
            path.write_bytes(flip(rng, bytearray(path.read_bytes()), 1200, int(rng.integers(1, 20))))


def cut_dicom(rng, place, head):
    """A slice that ends early."""
    paths = write_series(place, head)
    path = paths[int(rng.integers(len(paths)))]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(rng.integers(0, len(raw)))])


def enhanced(rng, place, head):
    """A multi-frame file with bits turned over or its end missing."""
    write_enhanced(place / "a.dcm", head)
    raw = bytearray((place / "a.dcm").read_bytes())
    raw = flip(rng, raw, 6000, int(rng.integers(1, 20))) if rng.random() < 0.5 else raw[: int(rng.integers(len(raw)))]
    (place / "a.dcm").write_bytes(raw)


def archive(rng, place, head):
    """A zip archive with bits turned over or its end missing."""
    with zipfile.ZipFile(place / "a.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.nii", head.to_bytes())
    raw = bytearray((place / "a.zip").read_bytes())
    raw = (
        flip(rng, raw, len(raw), int(rng.integers(1, 20))) if rng.random() < 0.7 else raw[: int(rng.integers(len(raw)))]
    )
    (place / "a.zip").write_bytes(raw)
