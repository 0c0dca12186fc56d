"""Any file or folder that a manifest may name, as one image, as a volume, as a head CT, as a mask."""

import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np

from anomaly3d.errors import PassingTrouble, UnreadableScan
from anomaly3d.scans.dicom import read_dicom, read_dicom_files
from anomaly3d.scans.dicom_headers import find_dicom, is_dicom
from anomaly3d.scans.hounsfield import AIR, check_finite, check_head_ct, check_units, without_background
from anomaly3d.scans.image_files import SUFFIXES, TROUBLES, load_image
from anomaly3d.scans.recipe import is_recipe, read_recipe
from anomaly3d.scans.volume import Volume
from anomaly3d.system.files import visible

HU_MIN, HU_MAX = -1024.0, 3071.0
LARGEST_ARCHIVE = 4e9  # bytes when unpacked
PACKED = 100  # times smaller than what it holds an archive of scans may be; CT packs to a half or a third ...
SMALL = 100e6  # ... and less than so many bytes fill no disk
NEGATIVE = 0.05  # share of an MR's voxels that interpolation may leave below 0
OVERSHOT = 0.25  # of a mask's largest value: what interpolation may leave below 0
WHOLE = 1e-3  # how far from whole numbers the labels of a mask may lie
INSIDE = 0.9  # share of a mask that must lie in the head


def read_image(path: Path) -> nib.nifti1.Nifti1Image:
    """A scan on its own grid, without axes of length 1 behind the third: ``(X, Y, Z, 1, 1)`` is a volume.

    Raises:
        UnreadableScan: with the reason.
    """
    image = read_any(path)
    while len(image.shape) > 3 and image.shape[-1] == 1:
        single, image = image, image.slicer[..., 0]
        image.extra.update(single.extra)
    return image


def read_any(path: Path) -> nib.nifti1.Nifti1Image:
    """As the file holds it: a DICOM folder or file, an image file (``image_files``), one of these in a zip, a recipe.

    ``image.extra["read_as"]`` says which series of a study it is, where there was a choice.

    Raises:
        UnreadableScan: with the reason.
    """
    if path.is_dir():
        return read_dicom(path)
    if is_recipe(path):
        try:
            return read_recipe(path)
        except FileNotFoundError as error:
            raise UnreadableScan("the file does not exist") from error
        except (OSError, ValueError) as error:
            raise UnreadableScan("the recipe is damaged") from error
    if zipfile.is_zipfile(path):
        return read_archive(path)
    if is_dicom(path):
        return read_dicom_files([path])
    return load_image(path)


def read_archive(path: Path) -> nib.nifti1.Nifti1Image:
    """The scan in a zip archive: a DICOM study, or one image file.

    Raises:
        UnreadableScan: with the reason.
    """
    with TemporaryDirectory() as place:
        try:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > min(LARGEST_ARCHIVE, SMALL + PACKED * path.stat().st_size):
                    raise UnreadableScan(f"a zip archive of {size / 1e9:.1f} GB when unpacked, too much for its kind")
                archive.extractall(place)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in TROUBLES:
                raise PassingTrouble(f"the zip archive could not be unpacked ({error.strerror})") from error
            raise UnreadableScan("a zip archive that is damaged or locked by a password") from error
        files = [folder / name for folder, names in visible(Path(place)) for name in names]
        images = [file for file in files if file.name.lower().endswith(SUFFIXES)]
        dicom = find_dicom(Path(place))
        if len(images) == 1 and not dicom:
            return load_image(images[0])
        if not dicom or images:
            raise UnreadableScan(f"a zip archive that holds {len(images)} image files, not one scan: unpack it")
        return read_dicom_files(dicom)


def read_scan(path: Path) -> Volume:
    """A scan of any modality, axes nearest to right-anterior-superior.

    Raises:
        UnreadableScan: not an image, damaged, not 3D, or not finite.
    """
    image = read_image(path)
    if len(image.shape) != 3 or min(image.shape) < 8:
        shape = " x ".join(map(str, image.shape))
        raise UnreadableScan(f"not a volume: its shape is {shape}, and a head scan has at least 8 slices")
    if not np.isfinite(image.affine).all() or abs(np.linalg.det(image.affine[:3, :3])) < 1e-6:
        raise UnreadableScan("the affine in its header is singular")
    turned = nib.as_closest_canonical(image)
    data = np.array(turned.dataobj, dtype=np.float32, order="K")
    return Volume(data, np.asarray(turned.affine, float), image.extra.get("read_as", ""))


def read_ct(path: Path, stripped: bool = False) -> Volume:
    """A head CT in HU, clipped to [-1024, 3071].

    Args:
        stripped: only the brain is there; what lies around it, of any one value, becomes air.

    Raises:
        UnreadableScan: as ``read_scan``, or not the whole head in HU.
    """
    scan = read_scan(path)
    if stripped:
        scan = without_background(scan)
    check_head_ct(scan, stripped)
    np.clip(scan.data, HU_MIN, HU_MAX, out=scan.data)  # in place: thin slices of a head are 300 MB
    return scan


def read_mr(path: Path) -> Volume:
    """A head MR with its signal; what little interpolation leaves below 0 becomes 0. Not from DICOM.

    Raises:
        UnreadableScan: as ``read_scan``, or it is a CT, shows nothing or was changed to z-scores.
    """
    if is_dicom(path) if path.is_file() else find_dicom(path):
        raise UnreadableScan("DICOM of MR is not read yet: convert the series to NIfTI, for example by dcm2niix")
    scan = read_scan(path)
    check_finite(scan, "0")
    check_units(scan)
    if scan.data.max() <= 0:
        raise UnreadableScan("it shows nothing: no value is above 0")
    if (scan.data < AIR).mean() > NEGATIVE:
        raise UnreadableScan("values are negative in the background, as in a CT in HU: is preprocessing=ncct meant?")
    if (negative := float((scan.data < -0.02 * np.percentile(scan.data, 99)).mean())) > NEGATIVE:
        raise UnreadableScan(
            f"{negative:.0%} of its values are negative, as after a change to z-scores: give the scanner's own signal"
        )
    np.clip(scan.data, 0, None, out=scan.data)
    return scan


def read_mask(path: Path, scan: Volume | None = None, air: float = AIR) -> Volume:
    """A mask file in its scan's world: 0 outside, 1 inside.

    Inside is what has a label, whole numbers above 0; of values between them, as probabilities or an interpolated mask
    have, what is above half of the largest, and of 0.5.

    Args:
        scan: the mask must lie on it: on its grid, or on another with nearly all of it in the head.
        air: what of the scan is darker is no head.

    Raises:
        UnreadableScan: not a volume, no mask by its values, or elsewhere.
    """
    try:
        image = read_image(path)
    except UnreadableScan as error:
        raise UnreadableScan(f"its mask {path.name}: {error}") from error
    if len(image.shape) != 3:
        raise UnreadableScan(f"its mask {path.name} is not a volume")
    image = nib.as_closest_canonical(image)
    values = np.nan_to_num(np.asarray(image.dataobj, np.float32))
    labels = np.rint(values)
    whole = np.abs(values - labels).max() < WHOLE
    inside = labels > 0 if whole else values > max(values.max(), 1) / 2
    if values.min() < -OVERSHOT * max(values.max(), 1):
        raise UnreadableScan(f"its mask {path.name} has values down to {values.min():.3g}: an image, not a mask")
    if not inside.any() and values.max() > WHOLE:
        raise UnreadableScan(
            f"its mask {path.name} has values up to {values.max():.2g}, none of them above 0.5: give it 1 inside"
        )
    mask = Volume(inside.astype(np.float32), np.asarray(image.affine, float))
    if scan is not None:
        check_place(mask, scan, path.name, air)
    return mask


def check_place(mask: Volume, scan: Volume, name: str, air: float) -> None:
    """Refuse a mask that does not lie on its scan, where it is brighter than ``air``.

    Raises:
        UnreadableScan: says what to do.
    """
    grid = np.abs(mask.affine - scan.affine)
    if mask.data.shape == scan.data.shape:
        if (grid[:3, :3] > 0.01).any() or (grid[:3, 3] > 0.5 * scan.spacing.min()).any():
            raise UnreadableScan(
                f"its mask {name} has the scan's shape but another affine, so it would lie elsewhere in the head: save "
                "it with the affine of the scan"
            )
        return
    voxels = np.argwhere(mask.data)[:: max(1, int(mask.data.sum()) // 20000)]
    if not len(voxels):
        return
    world = voxels @ mask.affine[:3, :3].T + mask.affine[:3, 3]
    inverse = np.linalg.inv(scan.affine)
    there = np.rint(world @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    seen = ((there >= 0) & (there < scan.data.shape)).all(1)
    in_head = np.zeros(len(there), bool)
    in_head[seen] = scan.data[tuple(there[seen].T)] > air
    if in_head.mean() < INSIDE:
        raise UnreadableScan(f"its mask {name} does not lie on the scan: {in_head.mean():.0%} of it are in the head")
