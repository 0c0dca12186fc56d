"""The seven steps of one scan, chained, and what is written for it."""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from threadpoolctl import threadpool_limits

from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.files import written_whole
from anomaly3d.preprocessing.brain_mask import RIM, distance, intracranial_mask
from anomaly3d.preprocessing.crop import Box, bounding_box
from anomaly3d.preprocessing.intensity import fill_bone_rim, fill_outside, smooth_and_resize, to_unit_range
from anomaly3d.preprocessing.mask_command import check_mask_command, run_mask_command
from anomaly3d.preprocessing.quality import Quality, QualityLimits, judge, measure
from anomaly3d.preprocessing.registration import register, score
from anomaly3d.preprocessing.template import load_template
from anomaly3d.preprocessing.volume import HU_MIN, Volume, load_mask, read_scan, resample

VERSION = 5  # raised when the same settings would give other volumes
MASKS = ("lesion_mask", "mass_effect_mask")
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
    registration_enough: float
    mask_command: str | None
    fill_bone_rim: bool
    quality: QualityLimits

    @classmethod
    def from_config(cls, config: dict) -> "Settings":
        """From the plain dictionary of the config group.

        Raises:
            UserError: a key is missing, unknown, or has an impossible value.
        """
        try:
            quality = QualityLimits(**{k: read_limits(k, v) for k, v in config["quality"].items()})
            settings = cls(**{**config, "window": tuple(config["window"]), "quality": quality})
        except (TypeError, KeyError) as error:
            raise UserError(f"preprocessing config: {error}; compare with conf/preprocessing/ncct.yaml") from error
        if settings.crop not in ("template", "scan"):
            raise UserError(f"preprocessing.crop must be 'template' or 'scan', not {settings.crop!r}")
        if settings.mask_command:
            check_mask_command(settings.mask_command)
        return settings


def read_limits(name: str, pair: Any) -> tuple[float | None, float | None]:
    """``[lowest, highest]`` of a quality number.

    Raises:
        UserError: anything else.
    """
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(x, int | float | None) for x in pair):
        raise UserError(f"preprocessing.quality.{name} must be [lowest, highest] with null for no limit, not {pair!r}")
    return pair[0], pair[1]


@dataclass(frozen=True)
class Verdict:
    """One row of ``quality.csv``: ``accepted``, ``rejected`` (quality) or ``unreadable``, and why."""

    scan_id: str
    verdict: str
    reasons: str
    quality: Quality | None
    source: str = ""  # size and time of the scan's files: a replaced file is prepared again
    lesion_ml: float | None = None  # volume of the lesion mask on the scan's own grid


def working_grid(spacing: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Affine and shape of the isotropic MNI grid on which masks are found."""
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = WORKING_LOW
    nx, ny, nz = (np.ceil((WORKING_HIGH - WORKING_LOW) / spacing).astype(int) + 1).tolist()
    return affine, (nx, ny, nz)


@lru_cache(maxsize=1)
def working_template(template_path: Path, spacing: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The template's signed mm to the inner table and MNI z ``(1, 1, Z)`` on the working grid, and its spacing."""
    affine, shape = working_grid(spacing)
    inner_table = resample(load_template(template_path)[1], affine, shape, fill=30.0)
    return inner_table, (affine[2, 3] + spacing * np.arange(shape[2]))[None, None], spacing


@dataclass(frozen=True)
class Prepared:
    """A scan after the seven steps, on one MNI grid.

    ``image`` and ``twin`` are float32 in [-1, 1], masks uint8; ``extra`` holds the volumes that came with the scan.
    """

    image: np.ndarray
    brain_mask: np.ndarray
    extra: dict[str, np.ndarray]
    affine: np.ndarray
    mni_to_scan: np.ndarray
    quality: Quality


def prepare_volume(
    scan: Volume,
    settings: Settings,
    template_path: Path,
    brain_mask: Volume | None = None,
    masks: dict[str, Volume] | None = None,
    twin: Volume | None = None,
    transform_fault: np.ndarray | None = None,
) -> Prepared:
    """Steps 1 to 7 on a scan in HU.

    Args:
        brain_mask: on the scan's world; it wins over a command's and ours.
        masks: others that go the same way, by name, for example a lesion's.
        twin: the same head without its lesion, in HU on the scan's world; it gets the scan's transform and mask.
        transform_fault: 4x4 in MNI mm that spoils the registration on purpose, to test what notices it.

    Raises:
        UnreadableScan: registration failed, or no brain was found.
    """
    template, inner_table = load_template(template_path)
    registration = register(scan, template, inner_table, settings.registration_spacing, settings.registration_enough)
    to_scan, similarity = registration.mni_to_scan, registration.score
    if transform_fault is not None:
        to_scan = to_scan @ transform_fault
        similarity = score(scan, template, inner_table, settings.registration_spacing, to_scan)
    affine, shape = working_grid(settings.working_spacing)
    hu = resample(scan, affine, shape, to_scan, HU_MIN)
    if brain_mask is None and settings.mask_command:
        brain_mask = run_mask_command(settings.mask_command, scan)
    if brain_mask is None:
        mask = intracranial_mask(hu, *working_template(template_path, settings.working_spacing))
    else:
        mask = resample(brain_mask, affine, shape, to_scan) > 0.5
    if not mask.any():
        raise UnreadableScan("no brain was found: is this a head CT?")
    depth = distance(mask, settings.working_spacing)
    quality = measure(scan, hu, mask, depth, settings.working_spacing, inner_table, to_scan, similarity)
    small = crop_box(settings, mask, affine, inner_table).grid(settings.resolution)

    def shrink(hu: np.ndarray) -> np.ndarray:
        if settings.fill_bone_rim:
            hu = fill_bone_rim(hu, mask, depth <= RIM, settings.window[1])
        filled = Volume(fill_outside(hu, mask, settings.window), affine)
        return to_unit_range(smooth_and_resize(filled, small, settings.resolution, settings.window[0]), settings.window)

    def shrink_mask(binary: np.ndarray) -> np.ndarray:
        share = smooth_and_resize(Volume(binary.astype(np.float32), affine), small, settings.resolution, 0.0)
        return (share > 0.5).astype(np.uint8)

    extra = {name: shrink_mask(resample(m, affine, shape, to_scan) > 0.5) for name, m in (masks or {}).items()}
    if twin is not None:
        extra["twin"] = shrink(resample(twin, affine, shape, to_scan, HU_MIN))
    return Prepared(shrink(hu), shrink_mask(mask), extra, small, to_scan, quality)


def crop_box(settings: Settings, mask: np.ndarray, affine: np.ndarray, inner_table: Volume) -> Box:
    """The box of step 4: around the scan's own mask, or the same for all scans around the template's brain."""
    if settings.crop == "scan":
        return bounding_box(mask, affine)
    z = inner_table.affine[2, 3] + inner_table.affine[2, 2] * np.arange(inner_table.data.shape[2])
    return bounding_box((inner_table.data < 0) & (z > -70), inner_table.affine, settings.crop_margin)


def load_affine(path: Path) -> np.ndarray:
    """A 4x4 matrix from a text file.

    Raises:
        UnreadableScan: anything else.
    """
    try:
        matrix = np.loadtxt(path)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise UnreadableScan(f"its transform_fault {path.name} is not a text file of 4 x 4 numbers")
    return matrix


@dataclass(frozen=True)
class Sources:
    """The files of one scan as the manifest names them; an empty string for none."""

    scan_id: str
    image: str
    brain_mask: str = ""
    lesion_mask: str = ""
    mass_effect_mask: str = ""
    twin: str = ""
    transform_fault: str = ""

    def fingerprint(self) -> str:
        """Sizes and modification times, to notice that a file was replaced."""
        stats = [Path(p).stat() for name, p in vars(self).items() if p and name != "scan_id"]
        return " ".join(f"{s.st_size}-{s.st_mtime_ns}" for s in stats)


@threadpool_limits.wrap(1)  # the workers share the cores; and the bits do not depend on their number
def prepare_scan(sources: Sources, out: Path, template: Path, settings: Settings) -> Verdict:
    """Prepare one scan of a manifest into ``out`` and return its verdict, which is also kept as ``verdicts/ID.json``.

    The verdict is written last: where it exists, the scan is done and is not touched again.
    """
    scan_id, source = sources.scan_id, sources.fingerprint()
    done = out / "verdicts" / f"{scan_id}.json"
    if done.exists():
        stored = json.loads(done.read_text())
        if stored["source"] == source:
            stored["quality"] = Quality(**stored["quality"]) if stored["quality"] else None
            return Verdict(**stored)
        done.unlink()
    try:
        image = read_scan(Path(sources.image))
        masks = {name: load_mask(Path(p)) for name in MASKS if (p := getattr(sources, name))}
        prepared = prepare_volume(
            image,
            settings,
            template,
            load_mask(Path(sources.brain_mask)) if sources.brain_mask else None,
            masks,
            read_scan(Path(sources.twin)) if sources.twin else None,
            load_affine(Path(sources.transform_fault)) if sources.transform_fault else None,
        )
    except UnreadableScan as error:
        verdict = Verdict(scan_id, "unreadable", str(error), None, source)
    else:
        write_prepared(prepared, out, scan_id)
        reasons = judge(prepared.quality, settings.quality)
        name = "rejected" if reasons else "accepted"
        ml = masks["lesion_mask"].ml() if "lesion_mask" in masks else None
        verdict = Verdict(scan_id, name, "; ".join(reasons), prepared.quality, source, ml)
    with written_whole(done) as path:
        path.write_text(json.dumps(asdict(verdict), indent=1))
    return verdict


def write_prepared(prepared: Prepared, out: Path, scan_id: str) -> None:
    """Volumes as NIfTI in MNI space and the transform that leads back, each file whole or absent."""
    for kind, data in {"image": prepared.image, "brain_mask": prepared.brain_mask, **prepared.extra}.items():
        with written_whole(out / kind / f"{scan_id}.nii.gz") as path:
            nib.save(nib.nifti1.Nifti1Image(data, prepared.affine), path)
    with written_whole(out / "transform" / f"{scan_id}.json") as path:
        path.write_text(json.dumps({"mni_to_scan": prepared.mni_to_scan.tolist()}))
