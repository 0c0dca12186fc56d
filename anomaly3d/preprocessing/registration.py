"""Step 1: the affine from MNI space to the scan, by least squares between the template's values and the scan's.

CT numbers mean the same in every scan, so intensities are compared directly; mutual information, made for images whose
intensities do not correspond, costs ten times as much here and is no better (``experiments/preprocessing``). On MR,
whose values mean nothing by themselves, it refines what is found here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.volume import Volume, block_means

Curve = tuple[tuple[float, ...], tuple[float, ...]]  # values, and what becomes of them


@dataclass(frozen=True)
class Contrast:
    """What of a modality's values counts: ``tone`` to [0, 1] while a pose is sought, ``judged`` when it is scored.

    ``top`` clips before voxels are averaged, so that teeth and metal do not glare; a head is what is above ``air``; at
    last so many mm beyond the inner table are compared as ``reach`` says.
    """

    tone: Curve
    judged: Curve
    top: float
    air: float
    reach: float = 3.0


CT = Contrast(
    # a third of the range for soft tissue, so that ventricles and falx count beside the skull
    tone=((-150.0, 0.0, 60.0, 800.0), (0.0, 0.1, 0.4, 1.0)),
    # the inner table alone, sharply, because soft tissue and the bone's density differ by person
    judged=((60.0, 200.0), (0.0, 1.0)),
    top=1200.0,
    air=-100.0,
)
STRIPPED_CT = replace(CT, judged=((-500.0, 0.0), (0.0, 1.0)))  # without a skull the brain's outline is what is left
CENTRE = np.array([0.0, -18.0, 8.0])  # MNI mm: rotations and stretches are about the brain's middle
LENGTH = 50.0  # mm that shift as much as a radian or a doubling, roughly
HEAD_BELOW_VERTEX = 150.0  # mm: what lies lower is neck
AXES = np.eye(3)  # right, anterior, superior
ORIENTATIONS = [turn * axis for axis in AXES for turn in (90.0, -90.0, 180.0)]  # degrees: a header that is wrong
OTHER_STARTS = [  # where the head is sought when the first start ends poorly
    *(Rotation.from_rotvec(turn * axis, degrees=True) for axis in AXES for turn in (30.0, -30.0)),
    *(
        Rotation.from_rotvec(turn, degrees=True) * Rotation.from_rotvec(nod * AXES[0], degrees=True)
        for turn in ORIENTATIONS
        for nod in (-25.0, 0.0, 25.0)
    ),
]
REFINED = 4  # of them
SIZES = (0.85, 0.92, 1.08)  # of a head over the template's, tried when an upright head is not found at once
COARSE = (8.0, 14.0, 4000)  # mm of smoothing, mm beyond the inner table, number of points
FINE = (3.0, 12000)  # mm of smoothing, number of points
JUDGED = (2.0, 3.0, 12000)
BOX = 0.29  # standard deviation of a box over its width
TOLERATED = 0.3  # difference in tone from which a residual counts less than its square
UNSEEN = 0.1  # residual of a point that the scan does not show: leaving the scan is no way out


@dataclass(frozen=True)
class Registration:
    """``mni_to_scan``: MNI mm to the scan's world mm (RAS); ``score``: correlation with the template."""

    mni_to_scan: np.ndarray
    score: float


@dataclass(frozen=True)
class Level:
    """Template points and the scan, both smoothed by the same Gaussian.

    ``points (4, N)`` homogeneous mm from ``CENTRE``, ``target (N,)`` tones there, ``maps (4, X, Y, Z)`` the scan's tone
    and its gradient per mm, ``to_voxel`` the scan's world to its voxels.
    """

    points: np.ndarray
    target: np.ndarray
    maps: np.ndarray
    to_voxel: np.ndarray

    def sample(self, maps: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values ``(C, N)`` of scan maps ``(C, X, Y, Z)`` at the moved points, and which of them the scan shows."""
        voxels = (self.to_voxel @ matrix @ self.points)[:3]
        shape = np.array(self.maps.shape[1:])[:, None]
        seen = ((voxels > -0.5) & (voxels < shape - 0.5)).all(0)
        return np.stack([ndimage.map_coordinates(m, voxels, order=1, mode="nearest") for m in maps]), seen

    def residuals(self, matrix: np.ndarray) -> np.ndarray:
        """Scan minus template at each point: ``(N,)``."""
        values, seen = self.sample(self.maps[:1], matrix)
        return np.where(seen, values[0] - self.target, UNSEEN)

    def correlation(self, matrix: np.ndarray) -> float:
        """Pearson correlation of scan and template over the points; 0 where the scan shows few of them."""
        values, seen = self.sample(self.maps[:1], matrix)
        if seen.mean() < 0.3:
            return 0.0
        return float(np.corrcoef(values[0][seen], self.target[seen])[0, 1])


def matrix_of(pose: np.ndarray) -> np.ndarray:
    """4x4 of a pose: rotation vector in radians, shift in ``LENGTH``, then the 6 entries of a symmetric stretch."""
    matrix = np.eye(4)
    matrix[:3, 3] = pose[3:6] * LENGTH
    stretch = np.eye(3)
    if len(pose) > 6:
        xx, yy, zz, xy, xz, yz = pose[6:]
        stretch += [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
    matrix[:3, :3] = Rotation.from_rotvec(pose[:3]).as_matrix() @ stretch
    return matrix


def fit(level: Level, pose: np.ndarray) -> np.ndarray:
    """The pose near ``pose`` (6 numbers: rigid, 12: affine) with the least robust sum of squared residuals."""

    def jacobian(pose: np.ndarray) -> np.ndarray:
        gradient, seen = level.sample(level.maps[1:], matrix_of(pose))
        by_entry = ((gradient * seen)[:, None] * level.points[None]).reshape(12, -1)
        step = 1e-5
        entries = [
            (matrix_of(pose + step * unit) - matrix_of(pose - step * unit))[:3].ravel() / (2 * step)
            for unit in np.eye(len(pose))
        ]
        return by_entry.T @ np.array(entries).T

    found = least_squares(
        lambda pose: level.residuals(matrix_of(pose)),
        pose,
        jacobian,
        loss="soft_l1",
        f_scale=TOLERATED,
        x_scale="jac",
        ftol=1e-4,
        xtol=1e-4,
        max_nfev=40,
    )
    return found.x


def shrink(volume: Volume, spacing: float, top: float = CT.top) -> Volume:
    """Values up to ``top``, averaged over blocks of voxels of about ``spacing`` mm."""
    factor = np.maximum(np.rint(spacing / volume.spacing).astype(int), 1)
    return block_means(Volume(np.minimum(volume.data, top), volume.affine), factor)


def tone(values: np.ndarray, curve: Curve) -> np.ndarray:
    """Values through a curve."""
    return np.interp(values, *curve).astype(np.float32)


def head_centre(volume: Volume, air: float) -> np.ndarray:
    """World mm of the middle of the head above the neck: ``(3,)``; the largest thing that is not air is the head."""
    parts, count = ndimage.label(ndimage.binary_opening(volume.data > air))
    if count == 0:
        raise UnreadableScan("the scan shows nothing but air")
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    voxels = np.argwhere(parts == sizes.argmax())
    world = voxels @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    return world[world[:, 2] > world[:, 2].max() - HEAD_BELOW_VERTEX].mean(0)


def as_seen(template: Volume, spacing: np.ndarray, top: float = CT.top) -> Volume:
    """The template blurred as a scan's voxels blur the head: bone that fills half of one makes it look like bone."""
    values = np.minimum(template.data, top)
    return Volume(ndimage.gaussian_filter(values, BOX * spacing / template.spacing), template.affine)


def make_level(
    scan: Volume, template: Volume, inner_table: Volume, sigma: float, reach: float, count: int, curve: Curve = CT.tone
) -> Level:
    """A level of about ``count`` points up to ``reach`` mm outside the inner table of a template ``as_seen``."""
    voxels = np.argwhere(inner_table.data < reach)
    voxels = voxels[:: max(1, len(voxels) // count)]
    points = voxels @ template.affine[:3, :3].T + template.affine[:3, 3] - CENTRE
    fixed = ndimage.gaussian_filter(tone(template.data, curve), sigma / template.spacing)
    moving = ndimage.gaussian_filter(tone(scan.data, curve), sigma / scan.spacing, mode="nearest")
    to_voxel = np.linalg.inv(scan.affine)
    gradient = np.einsum("ij,i...->j...", to_voxel[:3, :3], np.stack(np.gradient(moving)))
    maps = np.concatenate([moving[None], gradient]).astype(np.float32)
    return Level(np.c_[points, np.ones(len(points))].T, fixed[tuple(voxels.T)], maps, to_voxel)


def register(
    scan: Volume, template: Volume, inner_table: Volume, spacing: float, enough: float, contrast: Contrast = CT
) -> Registration:
    """Find the affine from MNI space to the scan.

    Affine at once on a coarse level, then on a fine one; a rigid start would lose small heads to their own necks. Where
    the score stays below ``enough``, other sizes are tried; then the head is sought nodded, tilted and shaken by 30
    degrees and turned by quarter and half turns, rigid at first; the best start wins.

    Args:
        scan, template: in values of ``contrast``; ``inner_table`` is the template's signed distance in mm.
        spacing: mm of the scan's voxels during optimisation.

    Raises:
        UnreadableScan: nothing but air.
    """
    small = shrink(scan, spacing, contrast.top)
    seen = as_seen(template, small.spacing, contrast.top)
    coarse = make_level(small, seen, inner_table, *COARSE, contrast.tone)
    fine = make_level(small, seen, inner_table, FINE[0], contrast.reach, FINE[1], contrast.tone)
    judged = make_level(small, seen, inner_table, *JUDGED, contrast.judged)
    template_centre = head_centre(shrink(template, spacing, contrast.top), contrast.air) - CENTRE
    scan_centre = head_centre(small, contrast.air)

    def rigid(rotation: Rotation) -> np.ndarray:
        offset = scan_centre - rotation.apply(template_centre)
        return fit(coarse, np.r_[rotation.as_rotvec(), offset / LENGTH])

    def upright(size: float) -> np.ndarray:
        offset = scan_centre - size * template_centre
        return np.r_[np.zeros(3), offset / LENGTH, [size - 1] * 3, np.zeros(3)]

    def refine(pose: np.ndarray) -> Registration:
        for level in (coarse, fine):
            pose = fit(level, np.pad(pose, (0, 12 - len(pose))))
        return Registration(matrix_of(pose) @ shift(-CENTRE), judged.correlation(matrix_of(pose)))

    def best(found: Iterable[Registration]) -> Registration:
        return max(found, key=lambda one: one.score)

    first = refine(upright(1.0))
    if first.score < enough:
        first = best([first, refine(rigid(Rotation.identity())), *(refine(upright(size)) for size in SIZES)])
    if first.score >= enough:
        return first
    others = sorted(map(rigid, OTHER_STARTS), key=lambda pose: -coarse.correlation(matrix_of(pose)))
    return best([first, *map(refine, others[:REFINED])])


def score(
    scan: Volume,
    template: Volume,
    inner_table: Volume,
    spacing: float,
    mni_to_scan: np.ndarray,
    contrast: Contrast = CT,
) -> float:
    """The score of any affine: correlation of scan and template near the brain, arguments as for ``register``."""
    small = shrink(scan, spacing, contrast.top)
    judged = make_level(small, as_seen(template, small.spacing, contrast.top), inner_table, *JUDGED, contrast.judged)
    return judged.correlation(mni_to_scan @ shift(CENTRE))


def shift(offset: np.ndarray) -> np.ndarray:
    """4x4 of a translation in mm."""
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix
