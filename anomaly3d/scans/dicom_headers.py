"""DICOM files by their content, and what of their headers decides which of them make a scan.

Names, numbers, dates and free text of a patient are not read, with one exception: who (``patient``) and which study, so
that scans of one person can be told from those of others.
"""

import io
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import UID, MediaStorageDirectoryStorage

from anomaly3d.system.files import visible

config.settings.reading_validation_mode = config.IGNORE  # what a scanner wrote is judged here, not warned about

PREAMBLE, MAGIC = 128, b"DICM"
GROUPS = (b"\x02\x00", b"\x08\x00")  # a file without preamble begins with one of these groups
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
IDS = ("StudyInstanceUID", "PatientID")
SCALE, SCALED = "PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept")
WORDS = ("SeriesDescription", "ProtocolName", "BodyPartExamined")
FIELDS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "PatientID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "Modality",
    "ImageType",
    *WORDS,
    "ConvolutionKernel",
    "ContrastBolusAgent",
    "Rows",
    "Columns",
    "BitsAllocated",
    "PixelRepresentation",
    "SamplesPerPixel",
    "NumberOfFrames",
    "PixelSpacing",
    "SliceThickness",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]


@dataclass(frozen=True)
class Header:
    """One DICOM file. Positions are mm in the patient's world (LPS), ``(frames, 3)``; empty where there are none."""

    path: Path
    kind: str  # name of the SOP class, empty if unknown
    uid: str
    study: str
    series: str
    patient: str
    number: int | None  # of the series
    acquisition: int
    instance: int | None  # of the image in its series
    modality: str
    image_type: tuple[str, ...]
    words: str  # its description, else protocol or body part, in lower case: to choose by, never to show
    kernel: str
    contrast: str
    shape: tuple[int, int]
    colours: int
    bits: int
    spacing: tuple[float, ...]
    thickness: float
    orientation: tuple[float, ...]  # of rows and columns, 6 numbers or none
    positions: np.ndarray
    scales: int  # how many ways its frames are brought to HU
    cut: bool  # shorter than its pixels

    @property
    def frames(self) -> int:
        """Slices in the file."""
        return max(1, len(self.positions))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes; one that only its name calls DICOM counts too."""
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if path.name.upper() == "DICOMDIR":
        return False
    try:
        with path.open("rb") as file:
            start = file.read(PREAMBLE + len(MAGIC))
    except OSError:
        return False
    # without a preamble: a group, an element below 0x20, an explicit VR or a short implicit length
    return start[PREAMBLE:] == MAGIC or (
        start[:2] in GROUPS
        and start[3:4] == b"\0"
        and (start[4:6] in (b"UL", b"UI", b"CS", b"OB") or start[6:8] == b"\0\0")
    )


def find_dicom(folder: Path) -> list[Path]:
    """Every DICOM file below a folder."""
    return [place / name for place, names in visible(folder) for name in names if is_dicom(place / name)]


class Piecewise(io.BufferedReader):
    """A file for pydicom, which reads one whole only to inflate it: a small one could become any size."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            raise ValueError("a deflated data set")
        return super().read(size)


def read_tags(path: Path, names: Sequence[str]) -> Dataset:
    """Some tags of a file; raises whatever pydicom's parsers meet in a broken one."""
    with Piecewise(io.FileIO(path)) as file:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(names), force=True)


def read_ids(path: Path) -> tuple[str, str]:
    """Study and patient of a file, empty where they are unknown or the file is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_tags(path, IDS)
            return text(found, "StudyInstanceUID"), text(found, "PatientID")
    except Exception:  # pydicom raises whatever its parsers meet in a broken file; the reader will say so
        return "", ""


def read_header(path: Path) -> Header | None:
    """The header of a file; None for the index of a disc, which holds no image.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parse(path, read_tags(path, FIELDS))
    except Exception as error:  # pydicom raises whatever its parsers meet in a broken file
        raise ValueError(f"damaged: {type(error).__name__}") from error


def parse(path: Path, found: Dataset) -> Header | None:
    """What a header holds, ``found`` read with ``FIELDS``."""
    storage = text(found, "SOPClassUID") or str(getattr(found, "file_meta", {}).get("MediaStorageSOPClassUID", ""))
    if storage == MediaStorageDirectoryStorage:
        return None
    if not any(name in found for name in ("SOPClassUID", "SOPInstanceUID", "Rows", "Modality")):
        raise ValueError("no image and no object")
    if text(found, "PixelRepresentation") not in ("", "0", "1"):
        raise ValueError("pixels of an unknown kind")
    if "Rows" not in found and storage and "Image Storage" in UID(storage).name:
        raise ValueError("an image without rows")
    shared, frames = groups(found)
    spacing = floats(found, "PixelSpacing") or nested(shared, frames, "PixelMeasuresSequence", "PixelSpacing")
    thickness = floats(found, "SliceThickness") or nested(shared, frames, "PixelMeasuresSequence", "SliceThickness")
    orientation = floats(found, "ImageOrientationPatient") or nested(
        shared, frames, "PlaneOrientationSequence", "ImageOrientationPatient"
    )
    places = [floats(found, "ImagePositionPatient")] if "ImagePositionPatient" in found else []
    places = places or [nested([], [f], "PlanePositionSequence", "ImagePositionPatient") for f in frames]
    rows, columns = whole(found, "Rows") or 0, whole(found, "Columns") or 0
    bits, colours = whole(found, "BitsAllocated") or 0, whole(found, "SamplesPerPixel") or 1
    syntax = getattr(found, "file_meta", {}).get("TransferSyntaxUID", "")
    plain = syntax == "" or not UID(syntax).is_encapsulated
    pixels = rows * columns * (bits // 8) * colours * max(1, whole(found, "NumberOfFrames") or 1)
    right = [p for p in places if len(p) == 3]
    return Header(
        path=path,
        kind=UID(storage).name if storage else "",
        uid=text(found, "SOPInstanceUID"),
        study=text(found, "StudyInstanceUID"),
        series=text(found, "SeriesInstanceUID"),
        patient=text(found, "PatientID"),
        number=whole(found, "SeriesNumber"),
        acquisition=whole(found, "AcquisitionNumber") or 0,
        instance=whole(found, "InstanceNumber"),
        modality=text(found, "Modality").upper(),
        image_type=tuple(str(part).upper() for part in listed(found.get("ImageType"))),
        words=next(filter(None, (text(found, n) for n in WORDS)), "").lower(),
        kernel=" ".join(str(part) for part in listed(found.get("ConvolutionKernel"))).upper(),
        contrast=text(found, "ContrastBolusAgent").lower(),
        shape=(rows, columns),
        colours=colours,
        bits=bits,
        spacing=tuple(spacing),
        thickness=thickness[0] if thickness else 0.0,
        orientation=tuple(orientation) if len(orientation) == 6 else (),
        positions=np.array(right).reshape(-1, 3) if len(right) == len(places) else np.empty((0, 3)),
        scales=len({str([nested([], [frame], SCALE, name) for name in SCALED]) for frame in frames}),
        cut=plain and path.stat().st_size < pixels,
    )


def groups(found: Dataset) -> tuple[list[Dataset], list[Dataset]]:
    """The shared and the frames' functional groups of a multi-frame file."""
    shared = found.get("SharedFunctionalGroupsSequence")
    frames = found.get("PerFrameFunctionalGroupsSequence")
    return list(shared or []), list(frames or [])


def nested(shared: list[Dataset], frames: list[Dataset], sequence: str, name: str) -> list[float]:
    """Numbers of a functional group, from the shared ones or the first frame."""
    for group in [*shared, *frames[:1]]:
        for item in group.get(sequence) or []:
            if values := floats(item, name):
                return values
    return []


def listed(value: Any) -> Iterable[Any]:
    """A value of any multiplicity as several."""
    if value is None:
        return []
    return value if isinstance(value, list | tuple | pydicom.multival.MultiValue) else [value]


def text(found: Dataset, name: str) -> str:
    """A value as text, empty for none."""
    return " ".join(str(part) for part in listed(found.get(name))).strip()


def whole(found: Dataset, name: str) -> int | None:
    """A value as whole number, None for none."""
    try:
        return int(float(text(found, name)))
    except (ValueError, OverflowError):
        return None


def floats(found: Dataset, name: str) -> list[float]:
    """Values as finite numbers; none where one is not."""
    try:
        values = [float(part) for part in listed(found.get(name))]
    except (TypeError, ValueError):
        return []
    return values if np.isfinite(values).all() else []
