"""What tests read: a small head, prepared noise, and DICOM as scanners, archives and anonymizers write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from anomaly3d.cohorts.phantom.generate import generate
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.scans.manifest import OPTIONAL

LPS = np.diag([-1.0, -1.0, 1.0])
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # column, row, slice axis


def small_head(seed: int = 1, *lesions: str) -> nib.nifti1.Nifti1Image:
    """A phantom of 64 x 64 x 24 voxels with int16 HU, axes right, anterior, superior."""
    phantom = generate((77, seed), list(lesions), matrix=64, slices=24)
    image = nib.as_closest_canonical(nib.nifti1.Nifti1Image(phantom.hu, phantom.affine))
    return nib.nifti1.Nifti1Image(np.rint(np.asarray(image.dataobj)).astype(np.int16), image.affine)


def noise_cohort(folder: Path, side: int, **splits: int) -> PreparedCohort:
    """So many prepared scans a split, of noise; every other one is ill."""
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(name for name, count in splits.items() for _ in range(count)):
        row = {"scan_id": f"s{number}", "subject_id": f"p{number}", "label": str(number % 2), "split": split}
        for kind in ("image", "brain_mask", "lesion_mask"):
            data = rng.uniform(-1, 1, (side,) * 3)
            path = folder / kind / f"s{number}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            made = data.astype(np.float32) if kind == "image" else (data < 0.5).astype(np.uint8)
            nib.save(nib.nifti1.Nifti1Image(made, np.diag([2, 3, 5, 1])), path)
            row[kind] = str(path)
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=[*rows[0], *(c for c in OPTIONAL if c not in rows[0])], fill_value="")
    return PreparedCohort(folder, table, pd.DataFrame())


def write_series(
    folder: Path,
    head: nib.nifti1.Nifti1Image,
    plane: str = "axial",
    name: str = "{:03d}.dcm",
    study: str | None = None,
    edit: Callable[[Dataset, int], None] = lambda dataset, k: None,
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> list[Path]:
    """One classic CT series of a head; ``tags`` and ``edit(dataset, k)`` change what is written."""
    folder.mkdir(parents=True, exist_ok=True)
    study, series, written = study or generate_uid(), generate_uid(), []
    for k, (pixels, place) in enumerate(slices_of(head, plane)):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = CTImageStorage
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
        d.StudyInstanceUID, d.SeriesInstanceUID = study, series
        d.Modality, d.Manufacturer, d.PatientID, d.PatientName = "CT", "SIEMENS", "P1", "Somebody"
        d.StudyDate, d.StudyTime, d.SeriesNumber, d.InstanceNumber = "20200101", "120000", 3, k + 1
        d.AcquisitionNumber, d.SeriesDescription, d.ConvolutionKernel = 1, "HEAD 5.0", "H31s"
        d.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        describe(d, pixels, place)
        d.RescaleIntercept, d.RescaleSlope = "-1024", "1"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 12, 11, 0
        d.PixelData = (pixels.astype(np.int32) + 1024).clip(0, 4095).astype(np.uint16).tobytes()
        for tag, value in tags.items():
            setattr(d, tag, value)
        edit(d, k)
        if syntax != ExplicitVRLittleEndian:
            d.compress(syntax)
        path = folder / name.format(k + 1)
        d.save_as(path, enforce_file_format=True)
        written.append(path)
    return written


def slices_of(head: nib.nifti1.Nifti1Image, plane: str) -> list[tuple[np.ndarray, dict[str, Any]]]:
    """Pixels ``(rows, columns)`` of every slice, and where they lie in DICOM's terms."""
    column, row, across = PLANES[plane]
    hu, affine = np.asarray(head.dataobj), head.affine
    step = np.linalg.norm(affine[:3, :3], axis=0)
    right, down = -LPS @ affine[:3, column] / step[column], -LPS @ affine[:3, row] / step[row]
    made = []
    for k in range(hu.shape[across]):
        corner = np.array([n - 1 for n in hu.shape], float)
        corner[across] = k
        cut = np.moveaxis(hu, (column, row, across), (0, 1, 2))[::-1, ::-1, k].T
        place = {
            "ImagePositionPatient": [f"{v:.4f}" for v in LPS @ (affine @ np.r_[corner, 1])[:3]],
            "ImageOrientationPatient": [f"{v:.7f}" for v in (*right, *down)],
            "PixelSpacing": [f"{step[row]:.6f}", f"{step[column]:.6f}"],
            "SliceThickness": f"{step[across]:.4f}",
        }
        made.append((cut, place))
    return made


def describe(d: Dataset, pixels: np.ndarray, place: dict[str, Any]) -> None:
    """Size and place of a slice."""
    d.Rows, d.Columns = pixels.shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    for tag, value in place.items():
        setattr(d, tag, value)


def write_enhanced(path: Path, head: nib.nifti1.Nifti1Image) -> None:
    """A head as one multi-frame file, as newer scanners write it."""
    frames = slices_of(head, "axial")
    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = EnhancedCTImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    d.StudyInstanceUID, d.SeriesInstanceUID = generate_uid(), generate_uid()
    d.Modality, d.Manufacturer, d.PatientID, d.PatientName = "CT", "Philips", "P1", "Somebody"
    d.StudyDate, d.StudyTime, d.SeriesNumber, d.InstanceNumber = "20200101", "120000", 4, 1
    d.ImageType, d.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], len(frames)
    d.Rows, d.Columns = frames[0][0].shape
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 1
    measures, orientation, transform, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = frames[0][1]["PixelSpacing"], frames[0][1]["SliceThickness"]
    orientation.ImageOrientationPatient = frames[0][1]["ImageOrientationPatient"]
    transform.RescaleIntercept, transform.RescaleSlope, transform.RescaleType = "0", "1", "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([transform])
    d.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for k, (_, place) in enumerate(frames):
        position, content, group = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = place["ImagePositionPatient"]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, k + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([position]), Sequence([content])
        groups.append(group)
    d.PerFrameFunctionalGroupsSequence = Sequence(groups)
    d.PixelData = np.stack([pixels for pixels, _ in frames]).astype(np.int16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    d.save_as(path, enforce_file_format=True)
