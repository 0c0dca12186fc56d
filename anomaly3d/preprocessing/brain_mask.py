"""Step 3: the intracranial space of a head CT in MNI space, to the inner table, with CSF and extra-axial blood."""

import edt
import numpy as np
from scipy import ndimage

SOFT_TISSUE = (-15.0, 120.0)  # HU: CSF to clotted blood
INNER_TABLE = 600.0  # HU: a voxel cut in half by the inner table
RIM = 5.0  # mm: how far partial volume with bone keeps the soft-tissue threshold off the inner table
REACH = 8.0  # mm beyond the template's inner table that a head's own may lie
FORAMEN_MAGNUM = -68.0  # MNI mm: below it the canal is cut off


def ball(radius: float, spacing: float) -> np.ndarray:
    """A structuring element of a radius in mm."""
    n = int(radius / spacing)
    x = np.arange(-n, n + 1) * spacing
    return (x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2) <= radius**2


def distance(mask: np.ndarray, spacing: float, axis: int = 0, along: float = 1.0) -> np.ndarray:
    """Millimetres from each voxel of a mask to the nearest one outside it; 0 outside.

    Args:
        along: how much a millimetre along ``axis`` counts.
    """
    return edt.edt(mask, anisotropy=tuple(spacing * (along if a == axis else 1.0) for a in range(3)), parallel=1)


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


def intracranial_mask(
    hu: np.ndarray, inner_table: np.ndarray, height: np.ndarray, spacing: float, neck: float = 6.0
) -> np.ndarray:
    """Soft tissue that bone encloses, near the template's brain.

    Opened by ``neck`` mm so that orbits and scalp fall off where they hang on through a foramen or a gap, then grown
    back, closed, filled. Where bone is missing (craniectomy, the foramina) the template bounds the mask.

    Args:
        hu: ``(X, Y, Z)`` on an isotropic MNI grid; ``inner_table`` the template's signed mm there (negative inside);
            ``height`` MNI z in mm, ``(1, 1, Z)``.
    """
    near = (inner_table < REACH) & (height > FORAMEN_MAGNUM)
    box = ndimage.find_objects(near.astype(np.uint8))[0]  # the only part where there is anything to do
    part, near = hu[box], near[box]
    smooth = ndimage.gaussian_filter(part, 0.6)
    allowed = near & (smooth > SOFT_TISSUE[0]) & (smooth < SOFT_TISSUE[1])
    core = largest_part(erode(allowed, neck, spacing) & (inner_table[box] < REACH - neck))
    grown = dilate(core, neck + spacing, spacing) & allowed
    grown = largest_part(ndimage.binary_opening(grown, ball(2 * spacing, spacing)))
    padded = np.pad(grown, 8)
    closed = erode(dilate(padded, 5.0, spacing), 5.0, spacing)[8:-8, 8:-8, 8:-8]
    closed = ndimage.binary_fill_holes(closed & (part < INNER_TABLE) | grown)
    rim = (
        dilate(closed, RIM, spacing)
        & (part < INNER_TABLE)
        & (part > SOFT_TISSUE[0])
        & (height > FORAMEN_MAGNUM)[..., box[2]]
    )
    mask = np.zeros(hu.shape, bool)
    mask[box] = closed | rim
    return mask
