"""Between steps 3 and 5: the brain's rim without what the skull adds to it.

Beam hardening and the skull's blurred edge make brain brighter the nearer it lies to bone: by 20 to 40 HU in the last
millimetres and by 3 to 5 HU still 8 mm inside (``experiments/realism``), more than blood is brighter than brain. How
much differs with scanner, kernel, slice thickness and which way the skull faces, so it is measured in the scan itself:
the median at each depth, over the deep brain's. Blood on one side stays: the darker of two sides says what is usual.
"""

import numpy as np
from scipy import ndimage

from anomaly3d.preprocessing.brain_mask import distance
from anomaly3d.preprocessing.inner_table import COUNTED, Tissue

DEPTHS = np.arange(0.0, 12.1, 1.5)  # mm: edges of the layers
REFERENCE = (12.0, 16.0)  # mm: the layer that the others are compared with
FACING = np.linspace(-1, 1, 5)  # cosine of the skull's outward normal to the slices' axis: base, sides, vertex
TURNED = 0.3  # by which a place may differ from these
FEWEST = 50  # voxels in a layer that have a median
SMOOTH = 2.0  # voxels, of the depth before its gradient is taken
SPREAD = (0.7, 1.5, 4.0)  # voxels: how far tissue is carried outwards into voxels that have none, in turn


def excess(hu: np.ndarray, depth: np.ndarray, facing: np.ndarray, left: np.ndarray) -> np.ndarray:
    """HU by which each layer is brighter than the deep brain: ``(FACING, DEPTHS - 1)``, never rising inwards.

    Args:
        hu, depth, facing, left: of the voxels up to the reference layer, ``(N,)``.
    """

    def side(of: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(FACING), len(DEPTHS) - 1))
        for row, middle in zip(rows, FACING, strict=True):
            here = of & (np.abs(facing - middle) <= TURNED)
            values, layer = hu[here], np.digitize(depth[here], DEPTHS, right=True) - 1
            deep = values[(depth[here] > REFERENCE[0]) & (depth[here] <= REFERENCE[1])]
            for k in range(len(row)):
                found = values[layer == k]
                if min(len(found), len(deep)) >= FEWEST:
                    row[k] = max(np.median(found) - np.median(deep), 0)
        return np.maximum.accumulate(rows[:, ::-1], axis=1)[:, ::-1]

    return np.minimum(side(left), side(~left))


def flattened(tissue: Tissue, slice_axis: int, spacing: float) -> np.ndarray:
    """HU without the excess of the rim, where there is tissue: ``(X, Y, Z)`` on the working grid of ``spacing`` mm.

    Args:
        slice_axis: MNI axis along which slices follow one another.
    """
    solid = ndimage.binary_fill_holes(tissue.weight > 0.5)
    depth = distance(np.pad(solid, 1), spacing)[1:-1, 1:-1, 1:-1]
    gradient = np.gradient(ndimage.gaussian_filter(depth, SMOOTH))
    facing = -gradient[slice_axis] / (np.sqrt(sum(g**2 for g in gradient)) + 1e-6)
    left = np.broadcast_to((np.arange(len(depth)) < len(depth) / 2)[:, None, None], depth.shape)
    used = solid & (tissue.weight > 0.5) & (depth <= REFERENCE[1])
    found = excess(tissue.hu[used], depth[used], facing[used], left[used])
    rim = (tissue.weight >= COUNTED) & (depth <= DEPTHS[-1] + spacing)
    middles = np.r_[(DEPTHS[1:] + DEPTHS[:-1]) / 2, DEPTHS[-1] + spacing / 2]
    place = [np.interp(facing[rim], FACING, range(len(FACING))), np.interp(depth[rim], middles, range(len(middles)))]
    table = np.pad(found, ((0, 0), (0, 1)))
    flat = tissue.hu.copy()
    flat[rim] -= ndimage.map_coordinates(table, place, order=1, mode="nearest")
    return flat


def carried_outwards(hu: np.ndarray, tissue: Tissue) -> np.ndarray:
    """HU also in voxels inside the skull without tissue of their own to go by: the mean of what is beside them."""
    filled, known = np.where(tissue.weight >= COUNTED, hu, 0), tissue.weight >= COUNTED
    weight = np.where(known, tissue.weight, 0)
    for sigma in SPREAD:
        wanted = (tissue.share > 0) & ~known
        if not wanted.any():
            break
        share = ndimage.gaussian_filter(weight, sigma)
        reached = wanted & (share > 0.01)
        filled[reached] = (ndimage.gaussian_filter(hu * weight, sigma)[reached] / share[reached]).astype(np.float32)
        known |= reached
    return filled


def corrected(tissue: Tissue, slice_axis: int, spacing: float) -> np.ndarray:
    """HU of the tissue inside the skull, flat up to its edge; arguments as for ``flattened``."""
    inside = ndimage.find_objects((tissue.share > 0).astype(np.uint8))[0]
    part = Tissue(tissue.share[inside], tissue.weight[inside], tissue.hu[inside])
    whole = np.zeros_like(tissue.hu)
    whole[inside] = carried_outwards(flattened(part, slice_axis, spacing), part)
    return whole
