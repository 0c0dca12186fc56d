"""From a seed to a scan of a head: person, lesions and scanner are drawn and painted on the scan's voxels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.atlas.head import AIR, head_maps, paint_brain, paint_skull, soft_step
from anomaly3d.atlas.spin_echo import SEQUENCES
from anomaly3d.cohorts.phantom.ct import CT
from anomaly3d.cohorts.phantom.draws import draw_lesion
from anomaly3d.cohorts.phantom.fields import sample_field
from anomaly3d.cohorts.phantom.folds import fold
from anomaly3d.cohorts.phantom.lesions import Lesion, Place
from anomaly3d.cohorts.phantom.modality import Inside, Modality
from anomaly3d.cohorts.phantom.mr import MR
from anomaly3d.cohorts.phantom.postoperative import Surgery, draw_postoperative
from anomaly3d.cohorts.phantom.scanner import Scan, draw_scan
from anomaly3d.cohorts.phantom.subject import Subject, draw_subject
from anomaly3d.cohorts.phantom.versions import LATEST, version_of

SLAB = 4  # slices that are painted at a time
COARSE = 4  # voxels in plane between the nodes where smooth coordinates are computed
REACH = 30.0  # mm beyond the inner table where the vault's shells end
SLACK = 8.0  # mm by which the distance to it may be off between the coarse nodes, and by the person's texture
DISPLACED = 2.0  # mm: tissue that moved further is in the mass-effect mask
SEPTUM = torch.tensor([[0.0, 10.0, 12.0], [0.0, 0.0, 18.0], [0.0, -10.0, 20.0]])  # MNI mm: where midline shift is read
PERSON, SCANNER, BLEED, SURGERY, NOISE, TWIN_NOISE = range(6)  # streams of random numbers of one seed
ON_CT = CT()
MODALITIES: dict[str, Modality] = {"ct": ON_CT, **{name: MR(sequence) for name, sequence in SEQUENCES.items()}}


@dataclass(frozen=True)
class Painted:
    """Noise-free volumes on a scan's voxels: values, and masks of lesion, intracranial space and displaced tissue."""

    values: np.ndarray
    blood: np.ndarray
    intracranial: np.ndarray
    displaced: np.ndarray


@dataclass(frozen=True)
class PhantomScan:
    """A scan with what only a phantom knows. Volumes share shape and affine."""

    hu: np.ndarray  # int16; of MR the signal
    lesion: np.ndarray  # uint8
    mass_effect: np.ndarray  # uint8: tissue that moved by more than 2 mm, outside the lesion
    intracranial: np.ndarray  # uint8
    affine: np.ndarray
    subject: Subject
    scan: Scan
    lesions: tuple[Lesion, ...]

    def midline_shift(self) -> float:
        """mm by which the septum lies off the midline."""
        return abs(float(total_push(self.lesions, SEPTUM, torch.full((3,), 60.0))[:, 0].mean()))


def total_push(lesions: Sequence[Lesion], points: Tensor, depth: Tensor) -> Tensor:
    """From each point to where its tissue was before all bleeds, ``(N, 3)`` mm."""
    return sum((lesion.push(points, depth) for lesion in lesions), torch.zeros_like(points))


def smooth_coordinates(subject: Subject, scan: Scan, slices: range) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sub-slice voxels near the head, as indices ``(N,)`` into ``(2S, X, Y)`` flattened; at each of them ``(N, 3)`` MNI
    mm of the skull, of the brain, and the person's texture.

    Each slice is sampled at two depths, which is its thickness profile. All three are smooth, so they are computed on
    every fourth voxel and interpolated. Voxels that are left out show nothing but air.
    """
    nx, ny, _ = scan.shape
    x, y = (torch.linspace(0, n - 1, n // COARSE + 1) for n in (nx, ny))
    z = torch.arange(2 * slices.start, 2 * slices.stop) / 2 - 0.25
    voxels = torch.stack(torch.meshgrid(x, y, z, indexing="ij"), -1)
    to_mni = torch.tensor(np.linalg.inv(scan.pose) @ scan.affine, dtype=torch.float32)
    rigid = (voxels @ to_mni[:3, :3].T + to_mni[:3, 3]).reshape(-1, 3)
    skull = rigid + sample_field(subject.skull_warp, rigid)
    outside, face = head_maps().sample(head_maps().skull, skull)
    brain = skull + sample_field(subject.brain_warp, skull) * (-outside / 10).clamp(0, 1)[:, None]
    near = ((outside < REACH + SLACK) | (face > AIR + 1)).float()
    every = torch.cat([skull, brain, sample_field(subject.texture, skull), near[:, None]], 1)
    every = every.view(*voxels.shape[:3], 10).permute(2, 3, 0, 1).contiguous(memory_format=torch.channels_last)
    full = F.interpolate(every, size=(nx, ny), mode="bilinear", align_corners=True).permute(0, 2, 3, 1).reshape(-1, 10)
    index = torch.nonzero(full[:, 9])[:, 0]  # all voxels between nodes of which one is near
    points = full[index]
    skull, brain, texture = (points[:, k : k + 3].contiguous() for k in (0, 3, 6))
    return index, skull, brain, texture


def best_affine(subject: Subject, scan: Scan, points: int = 4000) -> np.ndarray:
    """The affine from MNI mm to the scan's world that fits pose and warp best over the brain: what registration seeks.

    Every phantom knows where each of its points lies in MNI space; this is the least-squares affine through them.
    """
    rng = np.random.default_rng(0)
    mni = torch.tensor(rng.uniform((-75, -110, -60), (75, 80, 85), (points, 3)), dtype=torch.float32)
    warped = mni + sample_field(subject.skull_warp, mni)
    inside = (head_maps().sample(head_maps().skull[:1], warped)[0] < 0).numpy()
    source = np.c_[warped.numpy()[inside], np.ones(inside.sum())]
    target = np.c_[mni.numpy()[inside], np.ones(inside.sum())] @ scan.pose.T
    solution, *_ = np.linalg.lstsq(source, target, rcond=None)
    return solution.T


def paint(
    subject: Subject,
    lesions: Sequence[Lesion],
    scan: Scan,
    surgery: Surgery | None = None,
    modality: Modality = ON_CT,
) -> Painted:
    """A head on the scan's voxels, without noise; a few slices at a time, which bounds the memory."""
    starts = range(0, scan.shape[2], SLAB)
    slabs = [range(start, min(start + SLAB, scan.shape[2])) for start in starts]
    whole = Painted(np.empty(scan.shape, np.float32), *(np.empty(scan.shape, bool) for _ in range(3)))
    for slab in slabs:
        part = paint_slices(subject, lesions, scan, surgery, modality, slab)
        for name, values in vars(part).items():
            getattr(whole, name)[..., slab.start : slab.stop] = values
    return whole


def paint_slices(
    subject: Subject, lesions: Sequence[Lesion], scan: Scan, surgery: Surgery | None, modality: Modality, slab: range
) -> Painted:
    """Some slices of a head."""
    maps, look = head_maps(), subject.look
    near, skull_points, brain_points, texture = smooth_coordinates(subject, scan, slab)
    grid = (2 * len(slab), *scan.shape[:2])
    inner_table, face = maps.sample(maps.skull, skull_points)
    inner_table = subject.anatomy.thicken(inner_table + texture[:, 0] * (inner_table.abs() < 15), skull_points)
    values = torch.full_like(face, modality.air)
    head = torch.nonzero((inner_table < REACH) | (face > AIR + 1))[:, 0]
    values[head] = modality.outside(paint_skull(inner_table[head], face[head], skull_points[head, 2], look))

    inside = torch.nonzero(inner_table < 1.0)[:, 0]
    points, depth, fields = skull_points[inside], -inner_table[inside], texture[inside]
    push = total_push(lesions, points, depth)
    moved = push.norm(dim=1)
    origin = brain_points[inside] + push
    sampled = maps.sample(maps.brain, origin)
    effaced = (moved / 8).clamp(0, 1)  # what moves is pressed together: sulci close, ventricles narrow
    widening = subject.ventricle_asymmetry * torch.tanh(origin[:, 0] / 10) / 2 - 2.0 * effaced
    sulci = fields[:, 2].clamp(0.4, 1.8) * (1 - 0.5 * effaced)
    if subject.folds is not None:
        sampled, sulci = fold(subject.folds, look.sulci * subject.sulcal, sulci, sampled, origin, depth)
    tissue, fluid = paint_brain(sampled, look, widening, sulci, modality.tissues)
    tissue = modality.healthy(tissue, subject, Inside(origin, depth, sampled, fields[:, 1], fluid))
    oedema = torch.zeros_like(depth)
    for lesion in lesions:
        oedema = torch.maximum(oedema, lesion.oedema(points, depth))
    tissue = modality.swollen(tissue, oedema)
    place = Place(points, depth, fluid, sampled[2] - look.ventricle - widening)
    blood = torch.zeros_like(depth)
    for lesion in lesions:
        fraction = lesion.fraction(place)
        tissue = tissue + (modality.value_of(lesion) - tissue) * fraction
        blood = torch.maximum(blood, fraction)
    tissue = modality.scanned(tissue, points, depth, scan)
    share = soft_step(depth, 1.0)
    values[inside] = values[inside] + (tissue - values[inside]) * share
    if surgery:
        values[head] = surgery.paint(values[head], skull_points[head], inner_table[head])

    def slices(where: Tensor, values: Tensor, elsewhere: float = 0.0) -> np.ndarray:
        full = torch.full(grid, elsewhere)
        full.view(-1)[where] = values
        return np.ascontiguousarray(full.view(-1, 2, *grid[1:]).mean(1).permute(1, 2, 0).numpy())

    limits = ((blood, 0.5), (share, 0.5), (moved * share, DISPLACED))
    masks = (slices(near[inside], values) > limit for values, limit in limits)
    return Painted(slices(near, values, modality.air), *masks)


def generate(
    seed: tuple[int, ...],
    lesion_types: Sequence[str],
    site: str = "A",
    matrix: int = 256,
    slices: int = 36,
    postoperative: str | None = None,
    twin: bool = False,
    warped: bool = True,
    change_scan: Callable[[Scan], Scan] = lambda scan: scan,
    version: int = LATEST,
    modality: str = "ct",
) -> PhantomScan:
    """The phantom of one seed; of one seed, all modalities show the same head and lesions.

    Args:
        lesion_types: of ``lesions.TYPES`` or ``lesions.OTHERS``, none for a healthy head.
        modality: of ``MODALITIES``.
        site: of the version's; ``slices`` is their usual number.
        postoperative: one of ``postoperative.KINDS``.
        twin: the same head in the same scanner without its lesions, scanned once more (with other noise).
        warped: False leaves out what no affine can describe: the head is MNI's own, scaled and posed.
        change_scan: another examination of the same head.
    """
    streams = [np.random.default_rng((*seed, stream)) for stream in range(6)]
    look, shown = version_of(version), MODALITIES[modality]
    subject = draw_subject(streams[PERSON], look)
    scan = change_scan(draw_scan(streams[SCANNER], subject.scale, shown.sites(look)[site], matrix, slices))
    lesions = [] if twin else [draw_lesion(kind, streams[BLEED], look, subject.reserve) for kind in lesion_types]
    surgery = draw_postoperative(postoperative, streams[SURGERY]) if postoperative else None
    if not warped:
        still = torch.zeros_like
        subject = replace(subject, skull_warp=still(subject.skull_warp), brain_warp=still(subject.brain_warp))
    painted = paint(subject, lesions, scan, surgery, shown)
    return PhantomScan(
        shown.acquire(painted.values, scan, streams[TWIN_NOISE if twin else NOISE]),
        painted.blood.astype(np.uint8),
        (painted.displaced & ~painted.blood).astype(np.uint8),
        painted.intracranial.astype(np.uint8),
        scan.affine,
        subject,
        scan,
        tuple(lesions),
    )
