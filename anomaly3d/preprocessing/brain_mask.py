"""Step 3: the intracranial space of a head CT in MNI space, with CSF and extra-axial blood."""

import edt
import numpy as np
from scipy import ndimage

SOFT_TISSUE = (-15.0, 120.0)  # HU: CSF to clotted blood
WALL = 150.0  # HU: a voxel of the scan's own that is denser is skull, however thin
CALCIFIED = 12.0  # mm inside the template's inner table: what is denser there is calcified
RIM = 5.0  # mm: how far inside a mask the skull may be near
REACH = 8.0  # mm beyond the template's inner table that a head's own may lie
FORAMEN_MAGNUM = -68.0  # MNI mm: below it the canal is cut off


def ball(radius: float, spacing: float) -> np.ndarray:
    """A structuring element of a radius in mm."""
    n = int(radius / spacing)
    x = np.arange(-n, n + 1) * spacing
    return (x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2) <= radius**2


def distance(mask: np.ndarray, spacing: float | np.ndarray) -> np.ndarray:
    """Millimetres from each voxel of a boolean mask to the nearest one outside it; 0 outside.

    Args:
        spacing: mm of a voxel, the same or one along each axis.
    """
    mm = tuple(np.broadcast_to(spacing, 3).astype(float).tolist())
    return edt.edt(mask.view(np.uint8), anisotropy=mm, parallel=1)  # of bool it makes a slow copy


def erode(mask: np.ndarray, radius: float, spacing: float) -> np.ndarray:
    """Erosion by a ball of ``radius`` mm."""
    return distance(mask, spacing) > radius


def dilate(mask: np.ndarray, radius: float, spacing: float) -> np.ndarray:
    """Dilation by a ball of ``radius`` mm."""
    return distance(~mask, spacing) <= radius


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected component; an empty mask stays empty."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def what_is_left(hu: np.ndarray) -> np.ndarray:
    """The brain of a head whose skull was removed: the largest part that is not air, filled."""
    return ndimage.binary_fill_holes(largest_part(ndimage.binary_opening(hu > -200.0)))


def intracranial_core(
    hu: np.ndarray, densest: np.ndarray, inner_table: np.ndarray, height: np.ndarray, spacing: float, neck: float = 6.0
) -> np.ndarray:
    """Soft tissue that bone encloses, near the template's brain; ``inner_table.py`` finds its edge.

    Opened by ``neck`` mm so that orbits and scalp fall off where they hang on through a foramen or a gap, then grown
    back and filled. Where bone is missing (craniectomy, the foramina) the template bounds it.

    Args:
        hu: ``(X, Y, Z)`` on an isotropic MNI grid.
        densest: the same of the scan's densest voxels about there, which see thin bone.
        inner_table: the template's signed mm there (negative inside); ``height`` MNI z in mm, ``(1, 1, Z)``.
    """
    near = (inner_table < REACH) & (height > FORAMEN_MAGNUM)
    box = ndimage.find_objects(near.astype(np.uint8))[0]  # the only part where there is anything to do
    part, near = hu[box], near[box]
    smooth = ndimage.gaussian_filter(part, 0.6)
    allowed = near & (smooth > SOFT_TISSUE[0]) & (smooth < SOFT_TISSUE[1]) & (densest[box] < WALL)
    allowed |= ndimage.binary_fill_holes(allowed) & (inner_table[box] < -CALCIFIED)
    core = largest_part(erode(allowed, neck, spacing) & (inner_table[box] < REACH - neck))
    grown = dilate(core, neck + spacing, spacing) & allowed
    grown = largest_part(ndimage.binary_opening(grown, ball(2 * spacing, spacing)))
    mask = np.zeros(hu.shape, bool)
    mask[box] = ndimage.binary_fill_holes(grown)
    return mask
