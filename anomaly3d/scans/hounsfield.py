"""Are these voxels a head CT in Hounsfield units? If not, what are they?"""

import numpy as np
from scipy import ndimage

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.volume import Volume

AIR = -500.0  # HU: below it is air
PADDING = -1100.0  # below it is no tissue, but what scanners write outside of their field of view
BONE = 300.0
SOFT = (-100.0, 200.0)
BRAIN = (10.0, 70.0)
HEAD_ML = (300.0, 2600.0)  # what is left of a head without its skull
LEAST_BONE = 0.08  # share of bone in all that is not air; a head has twice that and more
SATURATED = 0.1  # share of voxels at the largest value: the skull under a window
TISSUE = (-130.0, 100.0)  # HU: where most voxels of a head are that are neither air nor bone, fat and neck included
SAMPLE = 4e6  # voxels that are looked at
SIZES = (0.1, 20.0)  # mm of a voxel
EXTENT = (60.0, 2000.0)  # mm along each axis


def check_head_ct(scan: Volume, stripped: bool = False) -> None:
    """Refuse what cannot be a head CT in HU.

    Args:
        stripped: of the brain alone no bone is wanted.

    Raises:
        UnreadableScan: says what it looks like instead, and the remedy.
    """
    check_finite(scan)
    check_units(scan)
    step = max(1, round((scan.data.size / SAMPLE) ** 0.5))
    sample = scan.data[::step, ::step]
    low, high = float(scan.data.min()), float(scan.data.max())
    tissue = sample[sample > PADDING]
    reach = f"not in HU: values reach from {low:.0f} to {high:.0f}"
    if not stripped and without_skull(sample, scan.data.size / sample.size * scan.voxel_ml, high):
        raise UnreadableScan(
            "the head has no skull, it seems to be stripped already: give the whole head, or set "
            "preprocessing.stripped=true for a study of such scans"
        )
    if tissue.size == 0 or tissue.min() > AIR:
        raise UnreadableScan(f"{reach}, and a head CT has air near -1000 and bone above 300{likely(sample)}")
    if not stripped and high < BONE:
        raise UnreadableScan(f"{reach}, and a head CT has bone above 300")
    usual = tissue_mode(sample)
    if not TISSUE[0] <= usual <= TISSUE[1]:
        raise UnreadableScan(f"not in HU: most tissue is at {usual:.0f} HU, and water is 0: is there an offset?")


def check_finite(scan: Volume, nothing: str = "air, -1024 HU,") -> None:
    """Refuse voxels without a value; ``nothing`` is what should stand there instead.

    Raises:
        UnreadableScan: says how many.
    """
    if np.isfinite([scan.data.min(), scan.data.max()]).all():
        return
    if missing := int(scan.data.size - np.isfinite(scan.data).sum()):
        raise UnreadableScan(f"{missing} voxels are NaN or infinite: replace them by {nothing} where nothing was seen")


def check_units(scan: Volume) -> None:
    """Refuse voxel sizes that are not millimetres of a head.

    Raises:
        UnreadableScan: says them.
    """
    extent = scan.spacing * scan.data.shape
    if not (SIZES[0] <= scan.spacing.min() and scan.spacing.max() <= SIZES[1]) or not (
        EXTENT[0] <= np.sort(extent)[1] and extent.max() <= EXTENT[1]
    ):
        raise UnreadableScan(
            f"its header gives {' x '.join(f'{e:.3g}' for e in extent)} mm for what should be a head: are the voxel "
            "sizes in millimetres?"
        )


def without_skull(sample: np.ndarray, voxel_ml: float, high: float) -> bool:
    """Whether it looks like a brain that a tool has cut out: soft tissue of a brain's volume, one value around it.

    Args:
        sample: voxels that stand for ``voxel_ml`` each; ``high`` is the largest of the whole scan.
    """
    background = float(sample[0, 0, 0])
    inside = sample[(sample != background) & (sample > SOFT[0] - 1)]
    ml = inside.size * voxel_ml
    if background > SOFT[1] or not HEAD_ML[0] < ml < HEAD_ML[1] or not BRAIN[0] < np.median(inside) < BRAIN[1]:
        return False
    saturated = high <= BONE and (inside == high).mean() > SATURATED
    return float((sample == background).mean()) > 0.3 and float((inside > BONE).mean()) < LEAST_BONE and not saturated


def tissue_mode(sample: np.ndarray) -> float:
    """The most frequent HU between air and bone, to 10 HU; what fills corners or is exactly 0 does not count."""
    sample = sample[(sample > -400) & (sample < 1500) & (sample != 0) & (sample != sample[0, 0, 0])]
    counts, edges = np.histogram(sample, bins=190, range=(-400, 1500))
    return float(edges[counts.argmax()] + 5)


def likely(sample: np.ndarray) -> str:
    """What would explain that there is no air, as the end of a sentence."""
    air = float(np.median(sample[sample > PADDING])) if (sample > PADDING).any() else 0.0
    if (sample > 3000).mean() > 0.2:
        return ": air has wrapped round to values above 3000, 12 bits were read without their sign"
    if sample.max() > 1000 and 0 <= air < 1200:
        return (
            ": the rescale intercept, mostly -1024, may not have been applied; or it is MR, for which there is "
            "preprocessing=t1w, t2w or flair"
        )
    if sample.max() <= 255:
        return ": a window may have been applied, then its contrast is lost"
    return ""


def without_background(scan: Volume) -> Volume:
    """A stripped head with air in place of what lies around the brain: no value at all, or that of the corner as far as
    it hangs together with the border; fluid may have it as well."""
    parts, _ = ndimage.label(scan.data == scan.data[0, 0, 0])
    sides = [np.take(parts, end, axis) for axis in range(3) for end in (0, -1)]
    around = np.unique(np.concatenate([side.ravel() for side in sides]))
    outside = ~np.isfinite(scan.data) | np.isin(parts, around[around > 0])
    return Volume(np.where(outside, np.float32(-1024), scan.data), scan.affine, scan.read_as)
