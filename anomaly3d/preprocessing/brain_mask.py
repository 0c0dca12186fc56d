"""Step 3: the intracranial space of a head CT in MNI space, to the inner table, with CSF and extra-axial blood."""

import numpy as np
from scipy import ndimage

SOFT_TISSUE = (-15.0, 120.0)  # HU: CSF to clotted blood
INNER_TABLE = 400.0  # HU: a voxel cut in half by the inner table
RIM = 3.0  # mm: how far partial volume with bone keeps the soft-tissue threshold off the inner table
REACH = 12.0  # mm beyond the template's inner table that a head's own may lie
FORAMEN_MAGNUM = -68.0  # MNI mm: below it the canal is cut off


def ball(radius: float, spacing: float) -> np.ndarray:
    """A structuring element of a radius in mm."""
    n = int(radius / spacing)
    x = np.arange(-n, n + 1) * spacing
    return (x[:, None, None] ** 2 + x[None, :, None] ** 2 + x**2) <= radius**2


def erode(mask: np.ndarray, radius: float, spacing: float) -> np.ndarray:
    """Erosion by a ball of ``radius`` mm."""
    return ndimage.distance_transform_edt(mask) * spacing > radius


def dilate(mask: np.ndarray, radius: float, spacing: float) -> np.ndarray:
    """Dilation by a ball of ``radius`` mm."""
    return ndimage.distance_transform_edt(~mask) * spacing <= radius


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected component; an empty mask stays empty."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


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
    smooth = ndimage.gaussian_filter(hu, 0.6)
    soft = (smooth > SOFT_TISSUE[0]) & (smooth < SOFT_TISSUE[1]) & (height > FORAMEN_MAGNUM)
    allowed = soft & (inner_table < REACH)
    core = largest_part(erode(allowed, neck, spacing) & (inner_table < REACH - neck))
    grown = dilate(core, neck + spacing, spacing) & allowed
    grown = largest_part(ndimage.binary_opening(grown, ball(2 * spacing, spacing)))
    padded = np.pad(grown, 8)
    closed = erode(dilate(padded, 5.0, spacing), 5.0, spacing)[8:-8, 8:-8, 8:-8]
    closed = ndimage.binary_fill_holes(closed & (hu < INNER_TABLE) | grown)
    return (closed | dilate(closed, RIM, spacing) & (hu < INNER_TABLE) & (hu > SOFT_TISSUE[0])) & (
        height > FORAMEN_MAGNUM
    )
