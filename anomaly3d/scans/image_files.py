"""Image files of any format that holds a scan, told apart by their first bytes and not by their names."""

import errno
import gzip
import logging
import struct
import zlib
from collections.abc import Callable
from io import BufferedIOBase
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from anomaly3d.errors import PassingTrouble, UnreadableScan
from anomaly3d.scans.detached import refuse_elsewhere

logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what is wrong with a header is judged here

NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr")
SUFFIXES = (*NIFTI_SUFFIXES, ".mgh", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd")  # what a folder is searched for
LARGEST = 200e6  # voxels: a head in 0.4 mm slices has 130 million
FARTHEST = 10e6  # bytes of extensions before the voxels
HEADER = 352  # bytes
CHUNK = 1 << 20
UNITS = {1: 1000.0, 3: 0.001}  # NIfTI's codes of metres and micrometres -> mm; else they are mm
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # to RAS
GZIP = b"\x1f\x8b"
OTHERS = {  # first bytes -> what such a file is
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 or MINC file",
    b"CDF": "a MINC file",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"{": "a JSON file",
    b"<": "an HTML or XML page, perhaps of a download that failed",
    b"version https://git-lfs": "a Git LFS pointer, the scan itself was not downloaded: run 'git lfs pull'",
}
TROUBLES = {  # of a disk, a network or a machine, not of the file
    *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT),
}
META = 4096  # bytes of a MetaImage's header, if it is long
META_DIRECTIONS = (b"TransformMatrix", b"Orientation", b"Rotation")
META_SIZES = (b"ElementSpacing", b"ElementSize")
DAMAGE = (  # what nibabel and gzip raise on damaged files
    *(EOFError, OSError, zlib.error, ValueError, KeyError, OverflowError, MemoryError),
    nib.filebasedimages.ImageFileError,
)


def load_image(path: Path) -> nib.nifti1.Nifti1Image:
    """A scan file with its voxels read; NIfTI 1 and 2 (also gzip under ``.nii``, plain under ``.nii.gz``, pairs), MGH,
    NRRD, MetaImage.

    Raises:
        UnreadableScan: with the reason; for a file of another kind, what it is.
    """
    try:
        start = first_bytes(path)
        reader = reader_of(path, start)
        return reader(path)
    except UnreadableScan:
        raise
    except FileNotFoundError as error:
        raise UnreadableScan("the file does not exist") from error
    except PermissionError as error:
        raise PassingTrouble("the file may not be read: its permissions forbid it") from error
    except nib.spatialimages.HeaderDataError as error:
        raise UnreadableScan(f"its header is damaged ({error})") from error
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno in TROUBLES:
            raise PassingTrouble(f"the file could not be read ({error.strerror})") from error
        raise UnreadableScan("the file is damaged or cut short") from error


def opened(path: Path) -> BufferedIOBase:
    """A file, decompressed if it is compressed, whatever its name says."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    return gzip.GzipFile(path) if packed else path.open("rb")


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file's content."""
    with opened(path) as stream:
        return stream.read(HEADER)


def reader_of(path: Path, start: bytes) -> Callable[[Path], nib.nifti1.Nifti1Image]:
    """The function that reads a file which begins with ``start``.

    Raises:
        UnreadableScan: there is none; says what the file is.
    """
    if not start:
        raise UnreadableScan("the file is empty")
    if start[:2] == GZIP:
        raise UnreadableScan("it is compressed twice: unpack it once with gunzip")
    size = start[:4]
    if size in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):  # 348
        magic = start[344:348]
        if magic == b"n+1\0":
            return lambda path: read_nifti(path, nib.nifti1.Nifti1Header)
        if magic == b"ni1\0":
            return read_pair
        raise UnreadableScan(
            "an ANALYZE header, which does not say where right and left are: convert the original scan to NIfTI"
        )
    if size in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") and start[4:7] == b"n+2":  # 540
        return lambda path: read_nifti(path, nib.nifti2.Nifti2Header)
    if size == b"\0\0\0\x01" and path.suffix.lower() in (".mgh", ".mgz"):
        check_size(struct.unpack(">4i", start[4:20]))  # nibabel would first seek what lies behind so many voxels
        if struct.unpack(">h", start[28:30]) != (1,):  # and make up a place
            raise UnreadableScan(
                "its MGH header does not say where right and left are (goodRASFlag is not 1): convert the original "
                "scan to NIfTI"
            )
        return read_mgh
    if start.startswith(b"NRRD"):
        return read_nrrd
    if path.suffix.lower() in (".mha", ".mhd"):
        return read_meta
    for magic, what in OTHERS.items():
        if start.startswith(magic):
            raise UnreadableScan(f"not a scan but {what}")
    raise UnreadableScan("not a NIfTI image, nor DICOM, MGH, NRRD or MetaImage")


def check_size(shape: tuple[int, ...]) -> None:
    """Refuse a shape that no scan has, before memory is asked for.

    Raises:
        UnreadableScan: says it.
    """
    if min(shape, default=0) < 1 or float(np.prod(np.array(shape, float))) > LARGEST:
        raise UnreadableScan(f"its header claims a shape of {' x '.join(map(str, shape))}")


def check_colour(stored: np.dtype) -> None:
    """Refuse pictures.

    Raises:
        UnreadableScan: says it.
    """
    if stored.names or np.issubdtype(stored, np.complexfloating):
        raise UnreadableScan("a colour image, not a scan of one number a voxel")


def loaded(file: str | BufferedIOBase, header: nib.nifti1.Nifti1Header) -> np.ndarray:
    """Voxels as they are stored if they need no scaling, else float32."""
    stored = ArrayProxy(file, header)
    check_size(stored.shape)
    check_colour(stored.dtype)
    if np.issubdtype(stored.dtype, np.integer) and (stored.slope, stored.inter) == (1, 0):
        return np.asarray(stored)
    return np.asarray(stored, np.float32)


def read_header(stream: BufferedIOBase, kind: type[nib.nifti1.Nifti1Header]) -> nib.nifti1.Nifti1Header:
    """The header at the beginning of a file, without its extensions: nibabel would read all that they claim to hold.

    Raises:
        UnreadableScan: the voxels are not behind it.
    """
    header = kind(stream.read(kind.template_dtype.itemsize))
    if not 0 <= float(header["vox_offset"]) <= FARTHEST:
        raise UnreadableScan("its header is damaged: it says that the voxels begin far behind the file's end")
    return header


def read_nifti(path: Path, kind: type[nib.nifti1.Nifti1Header]) -> nib.nifti1.Nifti1Image:
    """A NIfTI file in one piece; no more of it is unpacked than its header claims, and that is bounded."""
    with opened(path) as stream:
        header = read_header(stream, kind)
        data = loaded(stream, header)
        check_end(stream)
        return placed(data, header)


def placed(data: np.ndarray, header: nib.nifti1.Nifti1Header) -> nib.nifti1.Nifti1Image:
    """Voxels at the place that their header names, with a word where it names none."""
    image = nib.nifti1.Nifti1Image(data, affine_of(header), header)
    image.header.set_xyzt_units("mm")  # as the affine is now, whatever the file's own unit
    if not (int(header["sform_code"]) or int(header["qform_code"])):
        image.extra["read_as"] = "its header does not say where right and left are: the first voxel is taken as right"
    elif int(header["sform_code"]) and int(header["qform_code"]):
        turns = [np.linalg.det(form[:3, :3]) for form in (header.get_sform(), header.get_qform())]
        if turns[0] * turns[1] < 0:
            image.extra["read_as"] = "its sform and qform mirror each other: right and left are taken from the sform"
    return image


def check_end(stream: BufferedIOBase) -> None:
    """Read on to the end, where gzip keeps the checksum of what was read before.

    Raises:
        UnreadableScan: the end is far away.
    """
    for _ in range(round(FARTHEST / CHUNK)):
        if not stream.read(CHUNK):
            return
    raise UnreadableScan("its header is damaged: it claims much less than the file holds")


def read_pair(path: Path) -> nib.nifti1.Nifti1Image:
    """A NIfTI header whose voxels lie beside it in an ``.img`` file."""
    with opened(path) as stream:
        header = read_header(stream, nib.nifti1.Nifti1PairHeader)
    voxels = nib.nifti1.Nifti1Pair.filespec_to_file_map(str(path))["image"].filename
    return placed(loaded(str(voxels), header), header)


def affine_of(header: nib.nifti1.Nifti1Header) -> np.ndarray:
    """Voxel to world in mm: the sform, or the qform where that is empty or contradicts the voxel sizes.

    Raises:
        UnreadableScan: neither is sound.
    """
    sizes = np.asarray(header["pixdim"][1:4], float)
    forms = [header.get_sform(coded=True), header.get_qform(coded=True)]
    known = [np.asarray(form, float) for form, code in forms if code]
    if not known:
        known = [np.asarray(header.get_base_affine(), float)]
    unit = UNITS.get(int(header["xyzt_units"]) % 8, 1.0)
    scale = np.diag([unit, unit, unit, 1.0])
    sound = [form for form in known if np.isfinite(form).all() and abs(np.linalg.det(form[:3, :3])) > 1e-9]
    if not sound:
        raise UnreadableScan("the affine in its header is singular")
    for form in sound:
        if np.allclose(np.linalg.norm(form[:3, :3], axis=0), sizes, rtol=0.05):
            return scale @ form
    raise UnreadableScan(
        f"its header contradicts itself: voxels of {' x '.join(f'{s:.3g}' for s in sizes)} mm, but an affine with "
        f"{' x '.join(f'{s:.3g}' for s in np.linalg.norm(sound[0][:3, :3], axis=0))} mm"
    )


def read_mgh(path: Path) -> nib.nifti1.Nifti1Image:
    """A FreeSurfer volume."""
    image = nib.freesurfer.mghformat.MGHImage.from_filename(path)
    return nib.nifti1.Nifti1Image(np.asarray(image.dataobj, np.float32), image.affine)


def read_nrrd(path: Path) -> nib.nifti1.Nifti1Image:
    """NRRD, whose header must say in which directions of the patient its axes are; ITK takes them to be LPS else."""
    image, said = read_itk(path)
    if said.get("NRRD_space") != "left-posterior-superior":  # what ITK brings all spaces to that it knows
        raise UnreadableScan(
            "its NRRD header does not say where right and left are: give it a field 'space', such as "
            "'space: left-posterior-superior', or convert the original scan to NIfTI"
        )
    return image


def read_meta(path: Path) -> nib.nifti1.Nifti1Image:
    """MetaImage, whose header must say how its axes lie and how large its voxels are; ITK makes up both else."""
    with opened(path) as stream:
        said = {line.partition(b"=")[0].strip() for line in stream.read(META).splitlines()}
    for names in META_DIRECTIONS, META_SIZES:
        if not said.intersection(names):
            raise UnreadableScan(
                f"its MetaImage header has no {names[0].decode()}, so how it lies or how large it is cannot be known: "
                "convert the original scan to NIfTI"
            )
    return read_itk(path)[0]


def read_itk(path: Path) -> tuple[nib.nifti1.Nifti1Image, dict[str, str]]:
    """NRRD or MetaImage by SimpleITK, which says where voxels lie in LPS, and what else its header says."""
    import SimpleITK as sitk

    refuse_elsewhere(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        check_size(reader.GetSize())
        if reader.GetNumberOfComponents() != 1:
            raise UnreadableScan("a colour image, not a scan of one number a voxel")
        image = reader.Execute()
    except RuntimeError as error:
        raise UnreadableScan("the file is damaged or cut short") from error
    if image.GetDimension() != 3:
        raise UnreadableScan(f"not a volume: it has {image.GetDimension()} dimensions")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    said = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    return nib.nifti1.Nifti1Image(np.asarray(sitk.GetArrayFromImage(image).T, np.float32), LPS @ affine), said
