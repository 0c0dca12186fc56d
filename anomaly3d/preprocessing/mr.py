"""Structural head MR, T1-, T2-weighted or FLAIR: as for CT, in z-scores of the scan's own brain in place of HU."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from anomaly3d.atlas.mni152 import ORIGIN, SPACING, mni152_map
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.preprocessing import mutual_information
from anomaly3d.preprocessing.base import Companions, Prepared
from anomaly3d.preprocessing.brain_mask import FORAMEN_MAGNUM, ball, dilate, distance, erode, largest_part
from anomaly3d.preprocessing.crop import box_of, working_grid
from anomaly3d.preprocessing.head import HeadPreprocessor
from anomaly3d.preprocessing.intensity import fill_outside, resize_mask, smooth_and_resize, to_unit_range
from anomaly3d.preprocessing.mask_command import run_mask_command
from anomaly3d.preprocessing.quality import DEEP, OF_POSE, noise, of_pose
from anomaly3d.preprocessing.registration import Contrast, Registration, register, score
from anomaly3d.scans.readers import read_mr
from anomaly3d.scans.volume import Volume, block_means, no_finer, outlined, resample

NO_BRAIN = "no brain was found: is this a head MR?"
WEIGHTINGS = {  # values over white matter's: of the template's tissues up to fluid or fat
    "t1w": Contrast(((0.0, 1.6), (0.0, 1.0)), ((0.0, 1.6), (0.0, 1.0)), 2.0, 0.25),
    "t2w": Contrast(((0.0, 3.0), (0.0, 1.0)), ((0.0, 3.0), (0.0, 1.0)), 3.6, 0.25),
    # fluid is as dark as bone: only the scalp says where the skull is
    "flair": Contrast(((0.05, 0.4), (0.0, 1.0)), ((0.0, 1.0), (0.0, 1.0)), 3.6, 0.25, reach=12.0),
}
WORDS = {"t1w": "T1-weighted", "t2w": "T2-weighted", "flair": "FLAIR"}
AIR = 0.25  # of what is usual in a head
SCALP = (5.0, 12.0)  # mm outside the template's inner table, skull and scalp
EMPTY = 0.9  # share of exact zeros there from which somebody has taken the scalp away
ROUNDS = 2  # of registration, because the scan's gain is known better each time
SURE = -8.0  # mm: that far inside the template's inner table there is brain
REACH = 6.0  # mm beyond it that a head's own may lie
SKULL = {"t1w": 0.45, "t2w": 0.6, "flair": 0.45}  # of the brain's median signal: bone is darker; fluid is bright on T2
NECK = 8.0  # mm: what hangs on the brain by less falls off
CLOSED = 8.0  # mm: narrower gaps in the mask are sulci
FIELD_SPACING = 6.0  # mm of the grid on which the bias field is found
FIELD_ROUNDS = (50, 50, 50)  # iterations at most at each finer level of its splines
TISSUE = 0.7  # share of grey and white matter in the template from which a voxel says what the field is
PURE = 0.8  # share of grey and white matter in the template from which a voxel says how bright tissue is
SPREAD = (16.0, 84.0)  # percentiles that lie two standard deviations apart


@dataclass(frozen=True)
class Quality:
    """What was measured on one scan; z: in standard deviations of its own brain."""

    registration: float  # correlation with the template
    turn_deg: float  # rotation between the header's axes and the head's
    coverage: float  # share of the template's brain inside the field of view
    brain_ml: float
    grey_z: float  # how much brighter grey matter is than white: below 0 on T1, above on T2 and FLAIR
    noise_z: float  # standard deviation of voxel noise in the brain
    bias: float  # how far the bias field's 95th and 5th percentile lie apart, as a share; 0 where it is not sought
    slice_mm: float
    slices: int


REASONS = {
    **OF_POSE,
    "grey_z": "grey over white matter is not as in this weighting, in z",
    "noise_z": "noisy, standard deviation in z",
    "bias": "the bias field is strong, share",
}


@lru_cache(maxsize=1)
def tissue_maps(spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Shares of grey and white matter of the MNI152 average on the working grid."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    grey, white = (resample(Volume(mni152_map(name), affine), *working_grid(spacing)) for name in ("gm", "wm"))
    return grey, white


def head_level(values: np.ndarray) -> float:
    """Median of what is not background, by Otsu's threshold below the brightest 1 %.

    Raises:
        UnreadableScan: nothing stands out.
    """
    values = np.minimum(values, np.percentile(values, 99)).astype(np.float32)
    threshold = sitk.OtsuThresholdImageFilter()
    threshold.Execute(sitk.GetImageFromArray(values))
    head = values[values > threshold.GetThreshold()]
    if not len(head):
        raise UnreadableScan("the scan shows nothing: all of it is equally bright")
    return float(np.median(head))


def bias_field(signal: np.ndarray, mask: np.ndarray, spacing: float) -> np.ndarray:
    """How unevenly coils see ``(X, Y, Z)``, 1 on average over the mask, by N4 (Tustison et al. 2010).

    Args:
        spacing: mm of the isotropic grid.
    """
    step = max(round(FIELD_SPACING / spacing), 1)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    small, inside = (block_means(Volume(x.astype(np.float32), affine), np.full(3, step)) for x in (signal, mask))
    image = mutual_information.as_itk(small)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(list(FIELD_ROUNDS))
    n4.Execute(image, mutual_information.as_itk(inside) > 0.5)
    logarithm = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T
    field = np.exp(resample(Volume(logarithm, small.affine), affine, signal.shape))
    return field / field[mask].mean()


class MR(HeadPreprocessor):
    """``conf/preprocessing/t1w.yaml``, ``t2w.yaml`` and ``flair.yaml``; z and mm.

    z: a voxel's distance to the median of the scan's own brain tissue, in half of what lies between its 16th and 84th
    percentile, after the bias field is taken out.

    Args:
        weighting: of ``WEIGHTINGS``.
        bias_field: take it out.

    The others are of ``HeadPreprocessor``.

    Raises:
        UserError: an impossible value.
    """

    unit = "z"
    modality = "MR"
    around = 0.0
    version = 2
    reasons = REASONS

    def __init__(
        self,
        resolution: int,
        weighting: str,
        window: Sequence[float],
        crop: str,
        crop_margin: float,
        working_spacing: float,
        registration_spacing: float,
        registration_enough: float,
        bias_field: bool,
        mask_command: str | None,
        quality: Mapping[str, Any],
        stripped: bool = False,
        smoothing: float = 0.5,
    ) -> None:
        if weighting not in WEIGHTINGS:
            raise UserError(f"preprocessing.weighting must be one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
        super().__init__(
            weighting,
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
        self.weighting, self.bias_field = weighting, bias_field

    @property
    def scans(self) -> str:  # type: ignore[override]
        return f"{WORDS[self.weighting]} head MR"

    def read(self, path: Path) -> Volume:
        return read_mr(path)

    def air(self, scan: Volume) -> float:
        return AIR * head_level(scan.data)

    def comparable(self, stored: np.ndarray, there: np.ndarray, prepared: np.ndarray) -> np.ndarray:
        """By the line through what the brain's values became; the bias field stays in."""
        slope, offset = np.polyfit(there, prepared, 1)
        return stored * slope + offset

    def prepare(self, scan: Volume, companions: Companions) -> Prepared:
        """Steps 1 to 7 on a scan's signal.

        Raises:
            UnreadableScan: registration failed, or no brain was found.
        """
        _, inner_table = self.fixed()
        averaged = no_finer(scan, self.working_spacing)
        found = self.register(averaged, companions.transform_fault)
        to_scan = found.mni_to_scan
        affine, shape = working_grid(self.working_spacing)
        signal = resample(averaged, affine, shape, to_scan)
        seen = resample(Volume(np.ones_like(averaged.data), averaged.affine), affine, shape, to_scan) > 0.5
        if not self.stripped:
            self.check_scalp(signal[seen], seen)
        mask = self.mask(scan, signal, companions.brain_mask, to_scan) & seen
        if not mask.any():
            raise UnreadableScan(NO_BRAIN)
        z, field = self.standardised(signal, mask)
        small = box_of(self.crop, self.crop_margin, mask, affine, inner_table).grid(self.resolution)

        def shrink(z: np.ndarray) -> np.ndarray:
            filled = Volume(fill_outside(z, mask, self.window), affine)
            resized = smooth_and_resize(filled, small, self.resolution, self.window[0], self.smoothing)
            return to_unit_range(resized, self.window)

        def shrink_mask(inside: np.ndarray) -> np.ndarray:
            return resize_mask(inside, affine, small, self.resolution)

        extra = {n: shrink_mask(resample(m, affine, shape, to_scan) > 0.5) for n, m in companions.masks.items()}
        if companions.twin is not None:
            twin = resample(no_finer(companions.twin, self.working_spacing), affine, shape, to_scan)
            extra["twin"] = shrink(self.standardised(twin, mask)[0])
        quality = self.measure(scan, z, mask, field, inner_table, found)
        low, high = self.window
        preview = outlined((z - low) / (high - low), mask, np.full(3, self.working_spacing))
        return Prepared(shrink(z), shrink_mask(mask), extra, small, to_scan, asdict(quality), preview)

    def register(self, scan: Volume, fault: np.ndarray | None) -> Registration:
        """Step 1: least squares, again with the gain that the first pose shows, then mutual information; spoiled by
        ``fault`` where there is one."""
        head, inner_table = self.fixed()
        contrast = WEIGHTINGS[self.weighting]
        brain = inner_table.data < SURE
        wanted, gain = float(np.median(head.data[brain])), head_level(head.data) / head_level(scan.data)
        for _ in range(ROUNDS):
            level = Volume(scan.data * np.float32(gain), scan.affine)
            found = register(level, head, inner_table, self.registration_spacing, self.registration_enough, contrast)
            seen = resample(scan, head.affine, head.data.shape, found.mni_to_scan)[brain]
            gain = wanted / max(float(np.median(seen)), 1e-6)
        compared = inner_table.data < contrast.reach  # mostly without scalp and fat
        mni_to_scan = mutual_information.refine(scan, head, compared, found.mni_to_scan)
        if fault is not None:
            mni_to_scan = mni_to_scan @ fault
        level = Volume(scan.data * np.float32(gain), scan.affine)
        return Registration(
            mni_to_scan, score(level, head, inner_table, self.registration_spacing, mni_to_scan, contrast)
        )

    def mask(self, scan: Volume, signal: np.ndarray, given: Volume | None, to_scan: np.ndarray) -> np.ndarray:
        """Step 3 on the working grid: by the given mask, a command's, what is left of a stripped head, or ours."""
        if given is None and self.mask_command:
            given = run_mask_command(self.mask_command, scan, self.air(scan))
        grid = working_grid(self.working_spacing)
        if given is not None:
            mask = resample(given, *grid, to_scan) > 0.5
        elif self.stripped:
            mask = ndimage.binary_fill_holes(largest_part(ndimage.binary_opening(signal > 0)))
        else:
            mask = self.inside_skull(signal)
        return mask

    def check_scalp(self, signal: np.ndarray, seen: np.ndarray) -> None:
        """Refuse a head whose skull somebody has removed.

        Args:
            signal: of the voxels of the working grid that the scan shows; ``seen (X, Y, Z)``: which these are.

        Raises:
            UnreadableScan: with the remedy.
        """
        inner_table = resample(self.fixed()[1], *working_grid(self.working_spacing), fill=30.0)[seen]
        scalp = signal[(inner_table > SCALP[0]) & (inner_table < SCALP[1])]
        if len(scalp) and (scalp <= 0).mean() > EMPTY:
            raise UnreadableScan(
                "the head has no scalp, it seems to be stripped already: give the whole head, or set "
                "preprocessing.stripped=true for a study of such scans"
            )

    def inside_skull(self, signal: np.ndarray) -> np.ndarray:
        """What is brighter than bone and hangs together with the brain, near the template's: ``(X, Y, Z)`` bool."""
        affine, shape = working_grid(self.working_spacing)
        inner_table = resample(self.fixed()[1], affine, shape, fill=30.0)
        height = (affine[2, 3] + self.working_spacing * np.arange(shape[2]))[None, None]
        level = SKULL[self.weighting] * float(np.median(signal[inner_table < SURE]))
        near = (inner_table < REACH) & (height > FORAMEN_MAGNUM)
        allowed = near & (ndimage.gaussian_filter(signal, 0.6) > level) | (inner_table < SURE)
        core = largest_part(erode(allowed, NECK, self.working_spacing))
        grown = dilate(core, NECK + self.working_spacing, self.working_spacing) & allowed
        grown = largest_part(ndimage.binary_opening(grown, ball(2 * self.working_spacing, self.working_spacing)))
        closed = erode(dilate(grown, CLOSED, self.working_spacing), CLOSED, self.working_spacing)
        return ndimage.binary_fill_holes(closed & (near | grown))

    def standardised(self, signal: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """z of a signal on the working grid, and the bias field that was taken out.

        Raises:
            UnreadableScan: the brain shows no contrast.
        """
        field = np.ones_like(signal)
        brain = sum(tissue_maps(self.working_spacing))
        if not (mask & (brain > PURE)).any():
            raise UnreadableScan(NO_BRAIN)
        if self.bias_field:
            field = bias_field(signal, mask & (brain > TISSUE), self.working_spacing)
        even = signal / field
        tissue = even[mask & (brain > PURE)]
        low, middle, high = np.percentile(tissue, (SPREAD[0], 50.0, SPREAD[1]))
        if high <= low:
            raise UnreadableScan("its brain is equally bright all over")
        return ((even - middle) / ((high - low) / 2)).astype(np.float32), field

    def measure(
        self,
        scan: Volume,
        z: np.ndarray,
        mask: np.ndarray,
        field: np.ndarray,
        inner_table: Volume,
        found: Registration,
    ) -> Quality:
        """Step 2, see ``Quality``."""
        spacing = self.working_spacing
        grey, white = (float(np.median(z[mask & (share > PURE)])) for share in tissue_maps(spacing))
        low, high = np.percentile(field[mask], (5, 95))
        return Quality(
            **of_pose(scan, mask, spacing, inner_table, found.mni_to_scan, found.score),
            grey_z=round(grey - white, 3),
            noise_z=round(noise(z, distance(mask, spacing) > DEEP), 3),
            bias=round(float(high - low), 3),
        )
