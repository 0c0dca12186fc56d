"""Step 3, its edge: how much of each voxel lies inside the inner table, by the scan's own voxels.

At the 1.5 mm of the working grid the inner table is a blur in which a little bone and a voxel of clotted blood look
alike. So bone is found where the scan is sharpest, on its own grid, and what is brought to the working grid is the
share of each voxel that lies inside the skull, and the mean HU of its tissue without voxels that bone glares into.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from anomaly3d.preprocessing.brain_mask import FORAMEN_MAGNUM, SOFT_TISSUE, dilate, distance, erode, largest_part
from anomaly3d.scans.volume import Volume, no_finer, resample

FINEST = 1.0  # mm: finer voxels are averaged, which costs little sharpness and saves three quarters of the time
MARGIN = 8  # voxels of the working grid around the core that are looked at
BAND = 4.0  # mm around the core within which the inner table lies
DEEP = 5.0  # mm inside the core: what is dense there is calcified, not skull
BONE = 200.0  # HU: spongy bone, or a voxel that bone and tissue share; no blood is so dense
HARD = 300.0  # HU: bone that glares
BLOOD = 100.0  # HU: beside the skull nothing without bone is denser
TISSUE, CORTICAL = 60.0, 1200.0  # HU between which the share of bone in a voxel is read off
REACH = 3.0  # mm within which a voxel's neighbours say how dense the bone beside it is
BLUR = (1.0, 0.6)  # how a scanner blurs bone, sigma: mm, or voxels where those are larger
GLARE = 80.0  # HU above ``HARD``, blurred so: more of it, and a voxel's HU is no longer its tissue's
THIN = 3.0  # mm: parts that only hang on by something thinner lie outside the skull
COUNTED = 0.1  # share of a voxel that must be tissue for its mean HU to count


@dataclass(frozen=True)
class Tissue:
    """On the working grid, ``(X, Y, Z)`` each: ``share`` of the voxel inside the inner table, ``weight`` the share
    whose HU count, ``hu`` their mean (0 where ``weight`` is below ``COUNTED``).
    """

    share: np.ndarray
    weight: np.ndarray
    hu: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Voxels of which more than half lies inside."""
        return self.share > 0.5


def around(core: np.ndarray, affine: np.ndarray, scan: Volume, mni_to_scan: np.ndarray) -> Volume:
    """The part of a scan in which a mask on the working grid lies, with a margin."""
    where = np.argwhere(core)
    ends = np.stack([where.min(0) - MARGIN, where.max(0) + MARGIN])
    corners = np.array([[*ends[[i, j, k], [0, 1, 2]], 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)]).T
    voxels = (np.linalg.inv(scan.affine) @ mni_to_scan @ affine @ corners)[:3]
    low = np.clip(np.floor(voxels.min(1)).astype(int), 0, scan.data.shape)
    high = np.clip(np.ceil(voxels.max(1)).astype(int) + 1, low, scan.data.shape)
    moved = scan.affine.copy()
    moved[:3, 3] += moved[:3, :3] @ low
    return Volume(scan.data[tuple(map(slice, low, high))], moved)


def height_in(part: Volume, scan_to_mni: np.ndarray) -> np.ndarray:
    """MNI z in mm of each voxel."""
    x, y, z, offset = (scan_to_mni @ part.affine)[2]
    nx, ny, nz = map(np.arange, part.data.shape)
    return x * nx[:, None, None] + y * ny[None, :, None] + z * nz + offset


def shares(part: Volume, core: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share inside the inner table of each of a scan's voxels, and those whose HU count.

    Inside is what hangs together with the core without bone between, and a part of each voxel that both share.

    Args:
        core: soft tissue inside the skull; ``above``: voxels above the foramen magnum.
    """
    hu, spacing = part.data, part.spacing
    deep = distance(core, spacing) > DEEP
    bone = (hu >= BONE) & ~deep
    near = (distance(~core, spacing) <= BAND) & above
    soft = ((hu > SOFT_TISSUE[0]) & near | core) & ~bone
    parts, _ = ndimage.label(soft)
    inside = soft & (parts == np.bincount(parts[core & soft], minlength=1).argmax())
    skull = np.where(deep, 0, hu - HARD).clip(0, CORTICAL)
    glare = ndimage.gaussian_filter(skull, np.maximum(BLUR[0] / spacing, BLUR[1]))
    free = glare < GLARE
    counted = inside & (free & (hu < BLOOD) | deep)
    wide = [2 * int(np.ceil(REACH / width)) + 1 if width <= REACH else 3 for width in spacing]
    densest = ndimage.maximum_filter(hu, wide)
    tissue = 1 - np.clip((hu - TISSUE) / np.clip(densest - TISSUE, 1, CORTICAL - TISSUE), 0, 1)
    beside = ndimage.maximum_filter(inside, [2 * max(1, round(1 / width)) + 1 for width in spacing]) & bone & above
    return np.where(inside & free, 1.0, np.where(inside | beside, tissue, 0.0)).astype(np.float32), counted


def tissue_inside(
    scan: Volume, core: np.ndarray, affine: np.ndarray, mni_to_scan: np.ndarray, spacing: float
) -> Tissue:
    """What lies inside the inner table, on the working grid.

    Args:
        scan: in HU on its own grid.
        core: soft tissue inside the skull on the working grid, which is ``affine`` and isotropic of ``spacing`` mm.
    """
    part = around(core, affine, no_finer(scan, FINEST), mni_to_scan)
    back = np.linalg.inv(mni_to_scan)
    own = resample(Volume(core.astype(np.float32), affine), part.affine, part.data.shape, back) > 0.5
    share, counted = shares(part, own, height_in(part, back) > FORAMEN_MAGNUM)

    def bring(values: np.ndarray) -> np.ndarray:
        fine = Volume(values.astype(np.float32), part.affine)
        return resample(no_finer(fine, spacing), affine, core.shape, mni_to_scan)

    share = bring(share)
    share = np.where(dilate(largest_part(erode(share > 0.5, THIN, spacing)), THIN + spacing, spacing), share, 0)
    weight = np.where(share > 0, bring(counted), 0)
    mean = bring(counted * part.data) / np.maximum(weight, COUNTED)
    return Tissue(share, weight, np.where(weight >= COUNTED, mean, 0))


def tissue_of_mask(hu: np.ndarray, share: np.ndarray, near: np.ndarray) -> Tissue:
    """The same for a mask that is given: on the working grid, by HU there.

    Args:
        share: of each voxel inside the mask; ``near``: voxels where the skull is near.
    """
    weight = np.where((hu >= BLOOD) & near, 0, share)
    return Tissue(share, weight, np.where(weight >= COUNTED, hu, 0))
