"""Step 2: can this scan be used? Numbers, thresholds, and a reason in words."""

from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class QualityLimits:
    """Thresholds of ``conf/preprocessing/ncct.yaml``; a scan outside any of them is rejected."""

    min_registration: float  # correlation with the template over the head
    min_coverage: float  # share of the template's brain inside the field of view
    min_brain_ml: float
    max_brain_ml: float
    min_brain_hu: float  # median inside the mask
    max_brain_hu: float
    max_slice_mm: float


@dataclass(frozen=True)
class Quality:
    """What was measured on one scan."""

    registration: float
    coverage: float
    brain_ml: float
    brain_hu: float
    slice_mm: float


def measure(
    score: float,
    hu: np.ndarray,
    mask: np.ndarray,
    in_view: np.ndarray,
    template_brain: np.ndarray,
    mni_to_scan: np.ndarray,
    voxel_ml: float,
    slice_mm: float,
) -> Quality:
    """Measure on the working grid in MNI space; the brain's volume is given in the scan's own millimetres.

    Args:
        in_view: where the scan has voxels; ``template_brain`` where the template's intracranial space is.
        voxel_ml: volume of a voxel of the working grid.
    """
    ml = float(mask.sum()) * voxel_ml * abs(float(np.linalg.det(mni_to_scan[:3, :3])))
    return Quality(
        registration=round(score, 4),
        coverage=round(float(in_view[template_brain].mean()), 4),
        brain_ml=round(ml, 1),
        brain_hu=round(float(np.median(hu[mask])) if mask.any() else float("nan"), 2),
        slice_mm=round(slice_mm, 3),
    )


def judge(quality: Quality, limits: QualityLimits) -> list[str]:
    """Reasons to reject, empty for a scan that is fit."""
    found, reasons = asdict(quality), []
    for name, low, high, text in (
        ("registration", limits.min_registration, None, "registration to the template is poor: correlation"),
        ("coverage", limits.min_coverage, None, "the field of view cuts the brain: share covered"),
        ("brain_ml", limits.min_brain_ml, limits.max_brain_ml, "implausible brain volume in ml:"),
        (
            "brain_hu",
            limits.min_brain_hu,
            limits.max_brain_hu,
            "brain is not where it should be in HU: median",
        ),
        ("slice_mm", None, limits.max_slice_mm, "slices are too thick, in mm:"),
    ):
        value = found[name]
        low, high = (-np.inf if low is None else low), (np.inf if high is None else high)
        if not low <= value <= high:
            reasons.append(f"{text} {value:g}, wanted {low:g} to {high:g}")
    return reasons
