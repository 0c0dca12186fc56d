"""From a seed to a head CT: person, lesion and scanner are drawn, painted on the scan's voxels, written as NIfTI."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.cohorts.phantom.lesions import Lesion, draw_lesion
from anomaly3d.cohorts.phantom.postoperative import Craniectomy, draw_postoperative
from anomaly3d.cohorts.phantom.scanner import Scan, acquire, draw_scan
from anomaly3d.cohorts.phantom.subject import Subject, displacement, draw_subject
from anomaly3d.files import written_whole
from anomaly3d.head import AIR, CSF, head_maps, paint_brain, paint_skull, soft_step

COARSE = 4  # voxels in plane between the nodes where smooth coordinates are computed
REACH = 30.0  # mm beyond the inner table where the vault's shells end


@dataclass(frozen=True)
class PhantomScan:
    """A scan with what only a phantom knows. Volumes share shape and affine."""

    hu: np.ndarray  # int16
    lesion: np.ndarray  # uint8
    intracranial: np.ndarray  # uint8
    affine: np.ndarray
    subject: Subject
    scan: Scan


def smooth_coordinates(subject: Subject, scan: Scan) -> tuple[Tensor, Tensor]:
    """MNI mm of every sub-slice voxel, of the skull and of the brain: two ``(X, Y, 2S, 3)``.

    Each slice is sampled at two depths, which is its thickness profile. The warps are smooth, so they are computed on
    every fourth voxel and interpolated.
    """
    nx, ny, nz = scan.shape
    x, y = (torch.linspace(0, n - 1, n // COARSE + 1) for n in (nx, ny))
    z = torch.arange(2 * nz) / 2 - 0.25
    voxels = torch.stack(torch.meshgrid(x, y, z, indexing="ij"), -1)
    to_mni = torch.tensor(np.linalg.inv(scan.pose) @ scan.affine, dtype=torch.float32)
    rigid = (voxels @ to_mni[:3, :3].T + to_mni[:3, 3]).reshape(-1, 3)
    skull = rigid + displacement(subject.skull_warp, rigid)
    depth = -head_maps().sample(head_maps().skull[:1], skull)[0]
    brain = skull + displacement(subject.brain_warp, skull) * (depth / 10).clamp(0, 1)[:, None]
    both = torch.cat([skull, brain], 1).view(*voxels.shape[:3], 6).permute(3, 2, 0, 1)
    full = F.interpolate(both, size=(nx, ny), mode="bilinear", align_corners=True).permute(2, 3, 1, 0)
    return full[..., :3], full[..., 3:]


def best_affine(subject: Subject, scan: Scan, points: int = 4000) -> np.ndarray:
    """The affine from MNI mm to the scan's world that fits pose and warp best over the brain: what registration seeks.

    Every phantom knows where each of its points lies in MNI space; this is the least-squares affine through them.
    """
    rng = np.random.default_rng(0)
    mni = torch.tensor(rng.uniform((-75, -110, -60), (75, 80, 85), (points, 3)), dtype=torch.float32)
    warped = mni + displacement(subject.skull_warp, mni)
    inside = (head_maps().sample(head_maps().skull[:1], warped)[0] < 0).numpy()
    source = np.c_[warped.numpy()[inside], np.ones(inside.sum())]
    target = np.c_[mni.numpy()[inside], np.ones(inside.sum())] @ scan.pose.T
    solution, *_ = np.linalg.lstsq(source, target, rcond=None)
    return solution.T


def paint(
    subject: Subject, lesions: list[Lesion], scan: Scan, surgery: Craniectomy | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, share of blood and share of intracranial space for each voxel of the scan, noise-free."""
    maps = head_maps()
    skull_points, brain_points = smooth_coordinates(subject, scan)
    grid = skull_points.shape[:3]
    inner_table, face = maps.sample(maps.skull, skull_points.reshape(-1, 3))
    hu = torch.full_like(face, AIR)
    head = torch.nonzero((inner_table < REACH) | (face > AIR + 1))[:, 0]
    points = skull_points.reshape(-1, 3)[head]
    skull = paint_skull(inner_table[head], face[head], points[:, 2], subject.look)
    hu[head] = surgery.paint(skull, points, inner_table[head]) if surgery else skull

    inside = torch.nonzero(inner_table < 1.0)[:, 0]
    points, depth = skull_points.reshape(-1, 3)[inside], -inner_table[inside]
    origin = brain_points.reshape(-1, 3)[inside]
    blood = torch.zeros_like(depth)
    oedema = torch.zeros_like(depth)
    for lesion in lesions:
        origin = origin + (lesion.origin(points, depth) - points)
        oedema = torch.maximum(oedema, lesion.oedema(points, depth))
    tissue = paint_brain(maps.sample(maps.brain, origin), subject.look)
    tissue = tissue - (tissue - CSF).clamp_min(0) * 0.4 * oedema
    for lesion in lesions:
        fraction = lesion.fraction(points, depth)
        tissue = tissue + (lesion.hu - tissue) * fraction
        blood = torch.maximum(blood, fraction)
    share = soft_step(depth, 1.0)
    hu[inside] = hu[inside] + (tissue - hu[inside]) * share

    blood_map, intracranial = torch.zeros_like(hu), torch.zeros_like(hu)
    blood_map[inside], intracranial[inside] = blood, share
    slices = [v.view(*grid[:2], -1, 2).mean(-1).numpy() for v in (hu, blood_map, intracranial)]
    return slices[0], slices[1], slices[2]


def generate(
    seed: tuple[int, ...],
    lesion_types: Sequence[str],
    matrix: int = 256,
    slices: int = 36,
    postoperative: str | None = None,
    warped: bool = True,
    change_scan: Callable[[Scan], Scan] = lambda scan: scan,
) -> PhantomScan:
    """The phantom of one seed.

    Args:
        lesion_types: of ``lesions.TYPES``, none for a healthy head.
        postoperative: one of ``postoperative.KINDS``.
        warped: False leaves out what no affine can describe: the head is MNI's own, scaled and posed.
        change_scan: another examination of the same head.
    """
    rng = np.random.default_rng(seed)
    subject = draw_subject(rng)
    scan = draw_scan(rng, subject.scale, matrix, slices)
    lesions = [draw_lesion(kind, rng) for kind in lesion_types]
    surgery = draw_postoperative(postoperative, rng) if postoperative else None
    if not warped:
        still = torch.zeros_like
        subject = replace(subject, skull_warp=still(subject.skull_warp), brain_warp=still(subject.brain_warp))
    scan = change_scan(scan)
    hu, blood, intracranial = paint(subject, lesions, scan, surgery)
    return PhantomScan(
        acquire(hu, scan, rng),
        (blood > 0.5).astype(np.uint8),
        (intracranial > 0.5).astype(np.uint8),
        scan.affine,
        subject,
        scan,
    )


def write_phantom(
    folder: Path, scan_id: str, seed: tuple[int, ...], lesion_type: str | None, matrix: int, slices: int
) -> dict[str, object]:
    """Write one phantom's files under ``folder`` and return its truth, which is also what ``truth/ID.json`` holds.

    The truth is written last, so a scan that has one is complete; such a scan is not made again.
    """
    truth_path = folder / "truth" / f"{scan_id}.json"
    if truth_path.exists():
        return json.loads(truth_path.read_text())
    torch.set_num_threads(1)
    phantom = generate(seed, [lesion_type] if lesion_type else [], matrix, slices)
    for kind, data in (
        ("ct", phantom.hu),
        ("lesion", phantom.lesion),
        ("intracranial", phantom.intracranial),
    ):
        if kind != "lesion" or lesion_type:
            with written_whole(folder / kind / f"{scan_id}.nii.gz") as path:
                nib.save(nib.Nifti1Image(data, phantom.affine), path)
    voxel_ml = float(np.abs(np.linalg.det(phantom.affine))) / 1000
    truth = {
        "age": phantom.subject.age,
        "sex": phantom.subject.sex,
        "lesion_ml": round(float(phantom.lesion.sum()) * voxel_ml, 3),
        "mni_to_scan": best_affine(phantom.subject, phantom.scan).tolist(),
        "noise_hu": phantom.scan.noise,
        "slice_mm": phantom.scan.thickness,
        "ventricle_mm": phantom.subject.look.ventricle,
    }
    with written_whole(truth_path) as path:
        path.write_text(json.dumps(truth, indent=1))
    return truth
