"""A DICOM study as one image: its series chosen by headers, pixels and geometry by dcm2niix.

dcm2niix straightens gantry tilt, evens out slice distances and applies each slice's own slope and intercept.
"""

import re
import subprocess
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import pydicom

from anomaly3d.errors import PassingTrouble, UnreadableScan
from anomaly3d.scans.dicom_headers import MAGIC, PREAMBLE, Header, find_dicom, read_header
from anomaly3d.scans.dicom_series import Stack, check_complete, check_straight, choose, stacks_of
from anomaly3d.scans.image_files import check_size

MADE = re.compile(r"scan((?:_Tilt|_Eq)*)(?:_\d+)?")  # dcm2niix: straightened, evened, of several files
LONGEST = 300  # seconds that dcm2niix may take


def read_dicom(folder: Path) -> nib.nifti1.Nifti1Image:
    """The scan of a folder that holds a series or a whole study, searched to the bottom, in HU.

    ``image.extra["read_as"]`` says which series it is, where there was a choice.

    Raises:
        UnreadableScan: no series of a head CT, or one that is incomplete or damaged.
    """
    return read_dicom_files(find_dicom(folder))


def read_dicom_files(files: Sequence[Path | str]) -> nib.nifti1.Nifti1Image:
    """The scan among these DICOM files.

    Raises:
        UnreadableScan: as ``read_dicom``.
    """
    stack, read_as = find_stack(files)
    image = convert(stack)
    image.extra["read_as"] = read_as
    return image


def find_stack(files: Sequence[Path | str]) -> tuple[Stack, str]:
    """The series among these DICOM files that is the scan, and in words which it is, where there was a choice.

    Raises:
        UnreadableScan: as ``read_dicom``.
    """
    if not files:
        raise UnreadableScan("a folder without a DICOM series")
    headers, damaged = read_headers([Path(file) for file in files])
    if damaged:
        raise UnreadableScan(f"{damaged} of {len(files)} DICOM files are damaged or cut short")
    if not headers:
        raise UnreadableScan("a folder without a DICOM series")
    patients = {header.patient for header in headers} - {""}
    for number, what in ((len({header.study for header in headers}), "studies"), (len(patients), "patients")):
        if number > 1:
            raise UnreadableScan(
                f"a folder with {number} DICOM {what}, not one: name it with root=... or dataset.root=..."
            )
    stack, read_as = choose(stacks_of(headers))
    check_complete(stack)
    check_straight(stack)
    check_size((*stack.first.shape, stack.count))
    return stack, read_as


def read_headers(files: Sequence[Path]) -> tuple[list[Header], int]:
    """Headers of the files that hold something, and how many files are damaged."""
    found, damaged = [], 0
    for path in files:
        try:
            header = read_header(path)
        except ValueError:
            damaged += 1
        else:
            damaged += bool(header and header.cut)
            found += [header] if header else []
    return found, damaged


def hand_over(path: Path, to: Path, number: int | None) -> None:
    """A file as dcm2niix takes it: with the preamble that old archives left out, and with an instance number."""
    with path.open("rb") as file:
        if file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC and number is None:
            to.symlink_to(path.resolve())
            return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pydicom.dcmread(path, force=True)
        if number is not None:
            found.InstanceNumber = number
        found.save_as(to, enforce_file_format=True)


def numbers_of(stack: Stack) -> list[int | None]:
    """The instance number that each file gets: from 1 along the normal where some have none or the same, by which
    dcm2niix tells slices of some makers apart; else None, its own."""
    own = {header.instance for header in stack.files}
    if (None not in own and len(own) == len(stack.files)) or stack.count > len(stack.files):
        return [None] * len(stack.files)
    return (1 + np.argsort(np.argsort(stack.places))).tolist()


def convert(stack: Stack) -> nib.nifti1.Nifti1Image:
    """One series through dcm2niix: float32, straightened and evened where that was needed.

    Raises:
        UnreadableScan: dcm2niix does not make that many slices of it.
    """
    import dcm2niix

    slices = stack.count

    with TemporaryDirectory() as place:
        given, made = Path(place) / "in", Path(place) / "out"
        given.mkdir()
        made.mkdir()
        for k, (header, number) in enumerate(zip(stack.files, numbers_of(stack), strict=True)):
            hand_over(header.path, given / f"{k:05d}.dcm", number)
        options = ["-b", "n", "-z", "n", "-m", "y", "-f", "scan", "-o", str(made)]
        try:
            subprocess.run([dcm2niix.bin, *options, str(given)], capture_output=True, timeout=LONGEST)
        except subprocess.TimeoutExpired as error:
            raise PassingTrouble(f"dcm2niix did not finish within {LONGEST} s") from error
        images = {path: nib.nifti1.Nifti1Image.from_filename(path) for path in made.glob("*.nii")}
        if not any(path.stem == "scan" and image.shape[2:] == (slices,) for path, image in images.items()):
            raise UnreadableScan(f"dcm2niix could not make one volume of the {slices} DICOM slices: damaged?")
        best = max((path for path in images if MADE.fullmatch(path.stem)), key=lambda path: len(path.stem))
        return nib.nifti1.Nifti1Image(np.asarray(images[best].dataobj, np.float32), images[best].affine)
