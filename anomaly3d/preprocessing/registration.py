"""Step 1: an affine from MNI space to the scan, found by SimpleITK: the head's centre, then rigid, then affine."""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing.volume import Volume, resample

WINDOW = (-150.0, 250.0)  # HU: brain, skin and the place of bone, without bone's own variation
HEAD_BELOW_VERTEX = 150.0  # mm: what lies lower is neck
OTHER_STARTS = (  # degrees about the LPS axes: nodding, tilting, shaking the head
    (-25.0, 0.0, 0.0),
    (25.0, 0.0, 0.0),
    (0.0, 0.0, 25.0),
    (0.0, 0.0, -25.0),
    (0.0, 25.0, 0.0),
    (0.0, -25.0, 0.0),
)
SEED = 1  # of the metric's sample
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Registration:
    """``mni_to_scan``: MNI mm to the scan's world mm (RAS); ``score``: correlation with the template."""

    mni_to_scan: np.ndarray
    score: float


def shrink(volume: Volume, spacing: float) -> Volume:
    """A windowed copy with voxels of about ``spacing`` mm in [0, 1], neighbours averaged, for the optimiser."""
    factor = np.maximum(np.rint(spacing / volume.spacing).astype(int), 1)
    data = (np.clip(volume.data, *WINDOW) - WINDOW[0]) / (WINDOW[1] - WINDOW[0])
    keep = tuple(slice(0, n - n % f) for n, f in zip(data.shape, factor, strict=True))
    nx, ny, nz = (n // f for n, f in zip(data.shape, factor, strict=True))
    blocks = data[keep].reshape(nx, factor[0], ny, factor[1], nz, factor[2])
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ ((factor - 1) / 2)
    affine[:3, :3] = affine[:3, :3] * factor
    return Volume(blocks.mean((1, 3, 5), dtype=np.float32), affine)


def to_sitk(volume: Volume) -> sitk.Image:
    """The same voxels as a SimpleITK image; its world is LPS, so a sheared affine is not possible."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.data.T))
    affine = LPS @ volume.affine
    spacing = volume.spacing
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def orthogonal(volume: Volume) -> Volume:
    """The volume itself, or a resampled one where its axes are not at right angles (a straightened gantry tilt)."""
    axes = volume.affine[:3, :3] / volume.spacing
    if np.abs(axes.T @ axes - np.eye(3)).max() < 1e-3:
        return volume
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in volume.data.shape], indexing="ij")).reshape(3, -1)
    world = volume.affine[:3, :3] @ corners + volume.affine[:3, 3:]
    spacing = volume.spacing
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = world.min(1)
    shape = tuple(np.ceil(np.ptp(world, axis=1) / spacing).astype(int) + 1)
    return Volume(resample(volume, affine, shape, fill=float(volume.data.min())), affine)


def head_centre(volume: Volume) -> np.ndarray:
    """World mm of the middle of the head above the neck: ``(3,)``."""
    parts, count = ndimage.label(ndimage.binary_opening(volume.data > 0.3))
    if count == 0:
        return volume.affine[:3, :3] @ (np.array(volume.data.shape) / 2) + volume.affine[:3, 3]
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    voxels = np.argwhere(parts == sizes.argmax())
    world = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return world[world[:, 2] > world[:, 2].max() - HEAD_BELOW_VERTEX].mean(0)


def optimise(
    fixed: sitk.Image,
    mask: sitk.Image,
    moving: sitk.Image,
    start: sitk.Transform,
    shrinks: list[int],
    share: float,
) -> None:
    """Refine ``start`` in place by Mattes mutual information, on one thread and a seeded sample.

    One level of resolution for each of ``shrinks``; a level samples ``share`` of the full grid's voxels.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(mask)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([min(1.0, share * s**2) for s in shrinks], SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsGradientDescentLineSearch(
        learningRate=1.0, numberOfIterations=60, convergenceMinimumValue=1e-5, convergenceWindowSize=5
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrinks)
    method.SetSmoothingSigmasPerLevel([float(s > 1) * s for s in shrinks])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetInitialTransform(start, inPlace=True)
    method.SetNumberOfThreads(1)
    method.Execute(fixed, moving)


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """A linear SimpleITK transform (LPS points) as a 4x4 matrix for RAS points."""
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(unit))) - corner for unit in np.eye(3)]
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack(columns, 1)
    matrix[:3, 3] = corner
    return LPS @ matrix @ LPS


def correlation(template: Volume, inside: np.ndarray, moving: Volume, mni_to_scan: np.ndarray) -> float:
    """Pearson correlation of template and scan over the head, in the registration's window."""
    warped = resample(moving, template.affine, template.data.shape, mni_to_scan)
    return float(np.corrcoef(template.data[inside], warped[inside])[0, 1])


def register(
    scan: Volume, template: Volume, inner_table: Volume, spacing: float, share: float, enough: float
) -> Registration:
    """Find the affine from MNI space to the scan: the best of one start, or of several where the first ends poorly.

    Args:
        scan, template: in HU; ``inner_table`` is the template's signed distance in mm.
        spacing: mm of the scan's voxels during optimisation.
        share: of the template's voxels that the metric samples.
        enough: a score at which no other start is tried.

    Raises:
        UnreadableScan: no start led anywhere.
    """
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    fixed_volume = Volume((np.clip(template.data, *WINDOW) - WINDOW[0]) / (WINDOW[1] - WINDOW[0]), template.affine)
    near_head = inner_table.data < 12
    moving_volume = orthogonal(shrink(scan, spacing))
    fixed, moving = to_sitk(fixed_volume), to_sitk(moving_volume)
    mask = to_sitk(Volume(near_head.astype(np.uint8), template.affine))

    template_centre, scan_centre = head_centre(fixed_volume), head_centre(moving_volume)

    def attempt(turn: tuple[float, float, float]) -> Registration:
        rigid = sitk.Euler3DTransform()
        rigid.SetCenter((LPS[:3, :3] @ template_centre).tolist())
        rigid.SetTranslation((LPS[:3, :3] @ (scan_centre - template_centre)).tolist())
        rigid.SetRotation(*np.deg2rad(turn).tolist())
        optimise(fixed, mask, moving, rigid, [4], share)
        affine = sitk.AffineTransform(3)
        affine.SetCenter(rigid.GetCenter())
        affine.SetMatrix(rigid.GetMatrix())
        affine.SetTranslation(rigid.GetTranslation())
        optimise(fixed, mask, moving, affine, [4, 2], share)
        found = matrix_of(affine)
        return Registration(found, correlation(fixed_volume, near_head, moving_volume, found))

    found: list[Registration] = []
    for turn in ((0.0, 0.0, 0.0), *OTHER_STARTS):
        try:
            found.append(attempt(turn))
        except RuntimeError:  # this start lost the head: no sample fell inside the scan
            continue
        if found[-1].score >= enough:
            break
    if not found:
        raise UnreadableScan("registration failed from every start: is this a head CT?")
    return max(found, key=lambda r: r.score)
