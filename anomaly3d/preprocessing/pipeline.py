"""The seven steps of one scan, chained, and what is written for it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.files import written_whole
from anomaly3d.preprocessing.brain_mask import intracranial_mask
from anomaly3d.preprocessing.crop import Box, bounding_box
from anomaly3d.preprocessing.intensity import fill_outside, smooth_and_resize, to_unit_range
from anomaly3d.preprocessing.quality import Quality, QualityLimits, judge, measure
from anomaly3d.preprocessing.registration import register
from anomaly3d.preprocessing.template import load_template
from anomaly3d.preprocessing.volume import HU_MIN, Volume, load_nifti, read_scan, resample

VERSION = 1  # raised when the same settings would give other volumes
WORKING_LOW, WORKING_HIGH = np.array([-93.0, -129.0, -82.5]), np.array([93.0, 96.0, 103.5])  # MNI mm


@dataclass(frozen=True)
class Settings:
    """``conf/preprocessing``: everything that decides what a prepared volume is. HU, mm."""

    resolution: int
    window: tuple[float, float]
    crop: str  # "template": one box for all scans; "scan": the mask's own box, as in the paper
    crop_margin: float
    working_spacing: float
    registration_spacing: float
    registration_share: float
    registration_enough: float
    quality: QualityLimits

    @classmethod
    def from_config(cls, config: dict) -> "Settings":
        """From the plain dictionary of the config group.

        Raises:
            UserError: a key is missing, unknown, or has an impossible value.
        """
        try:
            quality = QualityLimits(**config["quality"])
            settings = cls(**{**config, "window": tuple(config["window"]), "quality": quality})
        except (TypeError, KeyError) as error:
            raise UserError(f"preprocessing config: {error}; compare with conf/preprocessing/ncct.yaml") from error
        if settings.crop not in ("template", "scan"):
            raise UserError(f"preprocessing.crop must be 'template' or 'scan', not {settings.crop!r}")
        return settings


@dataclass(frozen=True)
class Verdict:
    """One row of ``quality.csv``: ``accepted``, ``rejected`` (quality) or ``unreadable``, and why."""

    scan_id: str
    verdict: str
    reasons: str
    quality: Quality | None
    source: str = ""  # size and time of the scan's files: a replaced file is prepared again


def working_grid(spacing: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the isotropic MNI grid on which masks are found."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = WORKING_LOW
    nx, ny, nz = (np.ceil((WORKING_HIGH - WORKING_LOW) / spacing).astype(int) + 1).tolist()
    return affine, (nx, ny, nz)


@dataclass(frozen=True)
class Prepared:
    """A scan after the seven steps: ``image`` float32 in [-1, 1], masks uint8, on one MNI grid."""

    image: np.ndarray
    brain_mask: np.ndarray
    lesion_mask: np.ndarray | None
    affine: np.ndarray
    mni_to_scan: np.ndarray
    quality: Quality


def prepare_volume(
    scan: Volume,
    settings: Settings,
    template_path: Path,
    brain_mask: Volume | None = None,
    lesion_mask: Volume | None = None,
) -> Prepared:
    """Steps 1 to 7 on a scan in HU; masks on the scan's world are optional, a given brain mask wins over ours.

    Raises:
        UnreadableScan: registration failed, or no brain was found.
    """
    template, inner_table = load_template(template_path)
    registration = register(
        scan,
        template,
        inner_table,
        settings.registration_spacing,
        settings.registration_share,
        settings.registration_enough,
    )
    affine, shape = working_grid(settings.working_spacing)
    to_scan = registration.mni_to_scan
    hu = resample(scan, affine, shape, to_scan, HU_MIN)
    inner = resample(inner_table, affine, shape, fill=30.0)
    height = (affine[2, 3] + affine[2, 2] * np.arange(shape[2]))[None, None]
    if brain_mask is None:
        mask = intracranial_mask(hu, inner, height, settings.working_spacing)
    else:
        mask = resample(brain_mask, affine, shape, to_scan) > 0.5
    if not mask.any():
        raise UnreadableScan("no brain was found: is this a head CT?")
    in_view = resample(Volume(np.ones(scan.data.shape, np.float32), scan.affine), affine, shape, to_scan) > 0.5
    quality = measure(
        registration.score,
        hu,
        mask,
        in_view,
        inner < 0,
        to_scan,
        settings.working_spacing**3 / 1000,
        float(scan.spacing.max()),
    )
    box = crop_box(settings, mask, affine, inner_table)
    small = box.grid(settings.resolution)
    low = settings.window[0]
    filled = fill_outside(hu, mask, settings.window)
    image = to_unit_range(smooth_and_resize(Volume(filled, affine), small, settings.resolution, low), settings.window)

    def shrink_mask(binary: np.ndarray) -> np.ndarray:
        share = smooth_and_resize(Volume(binary.astype(np.float32), affine), small, settings.resolution, 0.0)
        return (share > 0.5).astype(np.uint8)

    lesion = None
    if lesion_mask is not None:
        lesion = shrink_mask(resample(lesion_mask, affine, shape, to_scan) > 0.5)
    return Prepared(image, shrink_mask(mask), lesion, small, to_scan, quality)


def crop_box(settings: Settings, mask: np.ndarray, affine: np.ndarray, inner_table: Volume) -> Box:
    """The box of step 4: around the scan's own mask, or the same for all scans around the template's brain."""
    if settings.crop == "scan":
        return bounding_box(mask, affine)
    z = inner_table.affine[2, 3] + inner_table.affine[2, 2] * np.arange(inner_table.data.shape[2])
    return bounding_box((inner_table.data < 0) & (z > -70), inner_table.affine, settings.crop_margin)


def load_mask(path: str) -> Volume | None:
    """A mask file in the scan's world, 0 outside and 1 inside, or None for an empty path."""
    if not path:
        return None
    image = nib.as_closest_canonical(load_nifti(Path(path)))
    if len(image.shape) != 3:
        raise UnreadableScan(f"its mask {Path(path).name} is not a volume")
    return Volume((np.asarray(image.dataobj, np.float32) > 0).astype(np.float32), np.asarray(image.affine, float))


def fingerprint(*paths: str) -> str:
    """Sizes and modification times of files or folders, to notice that one was replaced."""
    stats = [Path(p).stat() for p in paths if p]
    return " ".join(f"{s.st_size}-{s.st_mtime_ns}" for s in stats)


def prepare_scan(
    scan_id: str, image: str, brain_mask: str, lesion_mask: str, out: Path, template: Path, settings: Settings
) -> Verdict:
    """Prepare one scan of a manifest into ``out`` and return its verdict, which is also kept as ``verdicts/ID.json``.

    The verdict is written last: where it exists, the scan is done and is not touched again.
    """
    done = out / "verdicts" / f"{scan_id}.json"
    source = fingerprint(image, brain_mask, lesion_mask)
    if done.exists():
        stored = json.loads(done.read_text())
        if stored["source"] == source:
            stored["quality"] = Quality(**stored["quality"]) if stored["quality"] else None
            return Verdict(**stored)
        done.unlink()
    try:
        prepared = prepare_volume(
            read_scan(Path(image)), settings, template, load_mask(brain_mask), load_mask(lesion_mask)
        )
    except UnreadableScan as error:
        verdict = Verdict(scan_id, "unreadable", str(error), None, source)
    else:
        write_prepared(prepared, out, scan_id)
        reasons = judge(prepared.quality, settings.quality)
        verdict = Verdict(scan_id, "rejected" if reasons else "accepted", "; ".join(reasons), prepared.quality, source)
    with written_whole(done) as path:
        path.write_text(json.dumps(asdict(verdict), indent=1))
    return verdict


def write_prepared(prepared: Prepared, out: Path, scan_id: str) -> None:
    """Volumes as NIfTI in MNI space and the transform that leads back, each file whole or absent."""
    for kind, data in (
        ("image", prepared.image),
        ("brain_mask", prepared.brain_mask),
        ("lesion_mask", prepared.lesion_mask),
    ):
        if data is not None:
            with written_whole(out / kind / f"{scan_id}.nii.gz") as path:
                nib.save(nib.Nifti1Image(data, prepared.affine), path)
    with written_whole(out / "transform" / f"{scan_id}.json") as path:
        path.write_text(json.dumps({"mni_to_scan": prepared.mni_to_scan.tolist()}))
