"""Non-contrast head CT: the paper's seven steps of one scan, chained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from anomaly3d.atlas import template
from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing.base import Companions, Prepared
from anomaly3d.preprocessing.brain_mask import RIM, distance, intracranial_core, what_is_left
from anomaly3d.preprocessing.crop import box_of, working_grid
from anomaly3d.preprocessing.head import HeadPreprocessor
from anomaly3d.preprocessing.inner_table import FINEST, Tissue, tissue_inside, tissue_of_mask
from anomaly3d.preprocessing.intensity import fill_outside, resize_mask, smooth_and_resize, to_unit_range
from anomaly3d.preprocessing.mask_command import run_mask_command
from anomaly3d.preprocessing.quality import REASONS, measure
from anomaly3d.preprocessing.registration import CT, STRIPPED_CT, Registration, register, score
from anomaly3d.preprocessing.rim import corrected
from anomaly3d.scans.readers import HU_MIN, read_ct
from anomaly3d.scans.volume import Volume, no_finer, outlined, resample

NO_BRAIN = "no brain was found: is this a head CT?"
PREVIEW = (-60.0, 140.0)  # HU, black and white


@lru_cache(maxsize=1)
def working_template(template_path: Path, spacing: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The template's signed mm to the inner table and MNI z ``(1, 1, Z)`` on the working grid, and its spacing."""
    affine, shape = working_grid(spacing)
    inner_table = resample(template.load_template(template_path)[1], affine, shape, fill=30.0)
    return inner_table, (affine[2, 3] + spacing * np.arange(shape[2]))[None, None], spacing


def thick_slices(scan: Volume, mni_to_scan: np.ndarray) -> tuple[int, float]:
    """The MNI axis nearest to the scan's slice axis, and the distance of its slices in mm."""
    axis = int(scan.spacing.argmax())
    direction = np.linalg.inv(mni_to_scan[:3, :3]) @ scan.affine[:3, axis]
    return int(np.abs(direction).argmax()), float(scan.spacing[axis])


class NCCT(HeadPreprocessor):
    """``conf/preprocessing/ncct.yaml``; HU and mm.

    Args:
        correct_rim: take out what the skull adds to the HU beside it.

    The others are of ``HeadPreprocessor``.

    Raises:
        UserError: an impossible value.
    """

    scans = "non-contrast head CT"
    around = HU_MIN
    stored = np.int16  # whole HU, as scanners do
    version = 9
    reasons = REASONS

    def __init__(
        self,
        resolution: int,
        window: Sequence[float],
        crop: str,
        crop_margin: float,
        working_spacing: float,
        registration_spacing: float,
        registration_enough: float,
        mask_command: str | None,
        correct_rim: bool,
        quality: Mapping[str, Any],
        stripped: bool = False,
        smoothing: float = 0.5,
    ) -> None:
        super().__init__(
            "ct",
            resolution=resolution,
            window=window,
            crop=crop,
            crop_margin=crop_margin,
            working_spacing=working_spacing,
            registration_spacing=registration_spacing,
            registration_enough=registration_enough,
            mask_command=mask_command,
            quality=quality,
            stripped=stripped,
            smoothing=smoothing,
        )
        self.correct_rim = correct_rim

    def read(self, path: Path) -> Volume:
        return read_ct(path, self.stripped)

    def prepare(self, scan: Volume, companions: Companions) -> Prepared:
        """Steps 1 to 7 on a scan in HU.

        Raises:
            UnreadableScan: registration failed, or no brain was found.
        """
        _, inner_table = self.fixed()
        averaged = no_finer(scan, self.working_spacing)
        found = self.register(averaged, companions.transform_fault)
        to_scan = found.mni_to_scan
        affine, shape = working_grid(self.working_spacing)
        hu = resample(averaged, affine, shape, to_scan, HU_MIN)
        slice_axis, _ = thick_slices(scan, to_scan)
        tissue = self.tissue(scan, hu, companions.brain_mask, to_scan)
        mask = tissue.mask
        depth = distance(mask, self.working_spacing)
        quality = measure(scan, hu, mask, depth, self.working_spacing, inner_table, to_scan, found.score)
        small = box_of(self.crop, self.crop_margin, mask, affine, inner_table).grid(self.resolution)

        def shrink(hu: np.ndarray, own: Tissue) -> np.ndarray:
            if self.correct_rim:
                hu = corrected(own, slice_axis, self.working_spacing)
            filled = Volume(fill_outside(hu, tissue.share if self.correct_rim else mask, self.window), affine)
            return to_unit_range(
                smooth_and_resize(filled, small, self.resolution, self.window[0], self.smoothing), self.window
            )

        def shrink_mask(inside: np.ndarray) -> np.ndarray:
            return resize_mask(inside, affine, small, self.resolution)

        extra = {n: shrink_mask(resample(m, affine, shape, to_scan) > 0.5) for n, m in companions.masks.items()}
        if companions.twin is not None:
            twin = resample(no_finer(companions.twin, self.working_spacing), affine, shape, to_scan, HU_MIN)
            extra["twin"] = shrink(twin, self.tissue(companions.twin, twin, companions.brain_mask, to_scan))
        grey = (hu - PREVIEW[0]) / (PREVIEW[1] - PREVIEW[0])
        preview = outlined(grey, mask, np.full(3, self.working_spacing))
        return Prepared(shrink(hu, tissue), shrink_mask(tissue.share), extra, small, to_scan, asdict(quality), preview)

    def register(self, scan: Volume, fault: np.ndarray | None) -> Registration:
        """Step 1, spoiled by ``fault`` where there is one."""
        fixed, contrast = self.fixed(), STRIPPED_CT if self.stripped else CT
        found = register(scan, *fixed, self.registration_spacing, self.registration_enough, contrast)
        if fault is None:
            return found
        spoiled = found.mni_to_scan @ fault
        return Registration(spoiled, score(scan, *fixed, self.registration_spacing, spoiled, contrast))

    def tissue(self, scan: Volume, hu: np.ndarray, given: Volume | None, to_scan: np.ndarray) -> Tissue:
        """Step 3 on the working grid: by the given mask, a command's, what is left of a stripped head, or ours.

        Raises:
            UnreadableScan: no brain was found.
        """
        grid = working_grid(self.working_spacing)
        if given is None and self.mask_command:
            given = run_mask_command(self.mask_command, scan)
        if given is None and not self.stripped:
            found = tissue_inside(scan, self.core(scan, hu, to_scan), grid[0], to_scan, self.working_spacing)
            if not found.mask.any():
                raise UnreadableScan(NO_BRAIN)
            return found
        share = (what_is_left(hu) if given is None else resample(given, *grid, to_scan)).astype(np.float32)
        if not (share > 0.5).any():
            raise UnreadableScan(NO_BRAIN)
        slice_axis, slice_mm = thick_slices(scan, to_scan)
        spacing = np.full(3, self.working_spacing)
        spacing[slice_axis] *= RIM / max(RIM, slice_mm)  # across thick slices the skull reaches further in
        depth = distance(share > 0.5, spacing)
        return tissue_of_mask(hu, share, depth <= RIM)

    def core(self, scan: Volume, hu: np.ndarray, to_scan: np.ndarray) -> np.ndarray:
        """What of step 3 is found on the working grid: soft tissue inside the skull, without its edge.

        Raises:
            UnreadableScan: there is none.
        """
        assert self._template_path is not None
        fine = no_finer(scan, FINEST)
        in_plane = [3 if mm < self.working_spacing else 1 for mm in fine.spacing]
        top = no_finer(Volume(ndimage.maximum_filter(fine.data, in_plane), fine.affine), self.working_spacing)
        densest = resample(top, *working_grid(self.working_spacing), to_scan, HU_MIN)
        core = intracranial_core(hu, densest, *working_template(self._template_path, self.working_spacing))
        if not core.any():
            raise UnreadableScan(NO_BRAIN)
        return core
