"""Labels and maps as DICOM objects that refer to the series they were found in: a segmentation and a parametric map.

Both lie on the series' own slices, tilted and unevenly spaced as they are. They name the patient as the series does:
viewers and archives join them by that.
"""

import hashlib
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from pydicom.config import RAISE
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import validate_value
from scipy import ndimage

from anomaly3d.errors import UserError
from anomaly3d.scans.dicom import find_stack
from anomaly3d.scans.dicom_headers import Header, find_dicom, is_dicom
from anomaly3d.scans.recipe import is_recipe, listed_files
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say

TO_RAS = np.array([-1.0, -1.0, 1.0])[:, None]  # DICOM's patient world is left-posterior-superior
STEP = 0.01  # of a map's numbers, which are kept as 16 bits around 0
LIMIT = 327.0
NUMBERS = {"segmentation": 9301, "map": 9302}  # of the series, as the scanner's viewer lists them
MAKER = "anomaly3d"
EMPTY = (  # what DICOM wants to be there, if only empty, and de-identified files often lack
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime"),
    *("AccessionNumber", "ReferringPhysicianName"),
)


def require_highdicom() -> None:
    """Refuse where the package is missing that writes such objects.

    Raises:
        UserError: says how to get it.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UserError("dicom=true takes highdicom: pip install 'anomaly3d[dicom]'") from error


def series_of(path: Path) -> tuple[Header, ...]:
    """The DICOM files that ``read_image`` makes a scan of; none where it is no DICOM file or folder."""
    if path.is_dir():
        return find_stack(find_dicom(path))[0].files
    if is_recipe(path) and (files := listed_files(path)):
        return find_stack(files)[0].files
    return find_stack([path])[0].files if is_dicom(path) else ()


def read_sources(series: Sequence[Header]) -> list[pydicom.Dataset]:
    """The slices of a series with all that an object which refers to them repeats, in one frame of reference."""
    sources: list[pydicom.Dataset] = [
        pydicom.dcmread(header.path, force=True, stop_before_pixels=True) for header in series
    ]
    frame = sources[0].get("FrameOfReferenceUID") or generate_uid(entropy_srcs=[series[0].series, "frame of reference"])
    for dataset in sources:
        dataset.FrameOfReferenceUID = frame
        for name in EMPTY:
            if not may_be_repeated(dataset, name):
                setattr(dataset, name, "")
    return sources


def may_be_repeated(dataset: pydicom.Dataset, name: str) -> bool:
    """Whether a slice has a value that a new object may have; what removes names often leaves dates that are none."""
    if name not in dataset:
        return False
    value = str(dataset[name].value)
    if name == "PatientSex":
        return value in ("", "M", "F", "O")
    try:
        validate_value(dataset[name].VR, value, RAISE)
    except ValueError:
        return dataset[name].VR not in ("DA", "TM")  # a text that is too long still names whom the series names
    return True


def on_slices(image: nib.nifti1.Nifti1Image, series: Sequence[Header], order: int) -> np.ndarray:
    """An image's values at the voxels of a series' slices ``(slices, rows, columns)``, 0 outside of it.

    Its outermost voxels reach half their width beyond their centres, so that rounding loses no slice.

    Args:
        order: 0 takes the nearest voxel, 1 is linear.
    """
    values, to_voxels = np.asarray(image.dataobj), np.linalg.inv(image.affine)
    ends = np.array(values.shape)[:, None] - 0.5
    slices = []
    for header in series:
        along, down = np.array(header.orientation[:3]), np.array(header.orientation[3:])
        rows, columns = (axis.ravel() for axis in np.indices(header.shape))
        across = along[:, None] * header.spacing[1] * columns + down[:, None] * header.spacing[0] * rows
        for corner in header.positions:
            world = TO_RAS * (corner[:, None] + across)
            there = to_voxels[:3, :3] @ world + to_voxels[:3, 3:]
            found = ndimage.map_coordinates(values, there, order=order, mode="nearest")
            slices.append(np.where(((there >= -0.5) & (there < ends)).all(0), found, 0).reshape(header.shape))
    return np.stack(slices)


def common(kind: str, sources: Sequence[pydicom.Dataset], pixels: np.ndarray) -> dict[str, Any]:
    """What every object is told. Its UIDs follow from its series and its content: made anew, it is the same object."""
    seed = [str(sources[0].SeriesInstanceUID), kind, hashlib.sha256(pixels.tobytes()).hexdigest()]
    return {
        "source_images": sources,
        "series_instance_uid": generate_uid(entropy_srcs=[*seed, "series"]),
        "sop_instance_uid": generate_uid(entropy_srcs=seed),
        "series_number": NUMBERS[kind],
        "instance_number": 1,
        "manufacturer": MAKER,
        "manufacturer_model_name": MAKER,
        "software_versions": version(MAKER),
        "device_serial_number": "0",
    }


def segmentation(
    labels: nib.nifti1.Nifti1Image, names: Sequence[str], series: Sequence[Header], sources: Sequence[pydicom.Dataset]
) -> pydicom.Dataset:
    """A DICOM SEG with a segment for each label 1, 2, ... of ``labels``, called by ``names``."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription

    made_by = AlgorithmIdentificationSequence(MAKER, codes.cid7162.ArtificialIntelligence, version(MAKER))
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=f"{number} {name}"[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made_by,
            anatomic_regions=[codes.SCT.Brain],
        )
        for number, name in enumerate(names, 1)
    ]
    pixels = on_slices(labels, series, 0).astype(np.uint16)  # there may be more than 255
    return Segmentation(
        pixel_array=pixels,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_description="Anomalies (anomaly3d, for research only)",
        **common("segmentation", sources, pixels),
    )


def parametric_map(
    found: nib.nifti1.Nifti1Image, series: Sequence[Header], sources: Sequence[pydicom.Dataset]
) -> pydicom.Dataset:
    """A parametric map of the distance from healthy scans, in healthy spreads, in steps of ``STEP``."""
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping

    spreads = on_slices(found, series, 1).clip(-LIMIT, LIMIT)
    pixels = np.rint((spreads + LIMIT) / STEP).astype(np.uint16)
    unit = RealWorldValueMapping(
        lut_label="z",
        lut_explanation="distance from healthy scans in their standard deviations",
        unit=codes.UCUM.NoUnits,
        value_range=(0, int(2 * LIMIT / STEP)),
        slope=STEP,
        intercept=-LIMIT,
    )
    made = ParametricMap(
        pixel_array=pixels,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[unit],
        voi_lut_transformations=[VOILUTTransformation(window_center=LIMIT / STEP, window_width=20 / STEP)],
        series_description="Distance from healthy (anomaly3d, for research only)",
        **common("map", sources, pixels),
    )
    made.BodyPartExamined = "HEAD"  # not one of a pair, so no side is asked for
    return made


def write_results(
    folder: Path,
    path: Path,
    found: nib.nifti1.Nifti1Image | None,
    labels: nib.nifti1.Nifti1Image | None,
    names: Sequence[str],
) -> None:
    """Write ``anomaly_map.dcm`` and, where there are labels, ``clusters.dcm``; or say why there can be none.

    Args:
        folder: where to.
        path: the scan as ``read_image`` takes it.
        found, labels: a standardised map and clusters on the scan's grid as ``read_image`` gives it.
        names: of the labels 1, 2, ...
    """
    series = series_of(path)
    if not all((header.study and header.series and header.uid) for header in series) or not series:
        why = "its files do not say which series they are" if series else "it is no DICOM folder or file"
        return say(f"  {folder.name}: no DICOM results: {why}")
    if found is None and labels is None:
        return say(f"  {folder.name}: no DICOM results: there is no standardised map of it")
    sources, made = read_sources(series), {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how others write names
            if found is not None:
                made["anomaly_map"] = parametric_map(found, series, sources)
            if labels is not None and names:
                made["clusters"] = segmentation(labels, names, series, sources)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # whose words may be the patient's
        return say(
            f"  {folder.name}: no DICOM results: its headers are not as DICOM wants them, and highdicom refuses them "
            f"({type(error).__name__})"
        )
    for name, dataset in made.items():
        with written_whole(folder / f"{name}.dcm") as beside:
            dataset.save_as(beside, enforce_file_format=True)
