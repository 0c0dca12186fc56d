"""What a place in MNI space is called: lobes by their landmarks, deep structures and ventricles as ellipsoids.

No atlas is shipped or downloaded. The lines follow what neuroanatomy texts and the MNI152 average show (Talairach and
Tournoux 1988; Damasio 2005): the central sulcus from the vertex forwards and down, the Sylvian fissure from the
temporal pole backwards and up, the parieto-occipital line from the sulcus at the midline to the preoccipital notch, the
tentorium as a roof that falls to the sides and the back. They are right to about a centimetre: enough for a name, not
for a measurement. Coordinates are MNI millimetres, axes right, anterior, superior.
"""

import numpy as np

# in this order: what lies inside two takes the name of the first; mirrored to the other side
SOLIDS = (
    ("fourth ventricle", (0, -46, -32), (8, 9, 12)),
    ("third ventricle", (0, -10, 2), (4, 15, 10)),
    ("lateral ventricle", (13, -12, 21), (8, 30, 8)),
    ("lateral ventricle", (9, 24, 10), (7, 13, 10)),
    ("lateral ventricle", (24, -42, 12), (8, 12, 13)),
    ("lateral ventricle", (26, -60, 8), (6, 12, 7)),
    ("lateral ventricle", (34, -22, -12), (5, 15, 5)),
    ("brainstem", (0, -26, -12), (16, 11, 11)),
    ("brainstem", (0, -25, -32), (18, 14, 14)),
    ("brainstem", (0, -39, -54), (12, 10, 16)),
    ("thalamus", (11, -18, 8), (10, 14, 11)),
    ("basal ganglia", (25, 2, 2), (10, 19, 13)),
    ("basal ganglia", (13, 12, 10), (7, 10, 12)),
    ("insula", (38, 3, 2), (6, 20, 13)),
)
UNPAIRED = ("fourth ventricle", "third ventricle", "brainstem", "basal cisterns")  # have no side
FLUID = ("ventricle", "cisterns")  # is not called extra-axial
CISTERNS = 12.0  # mm from the midline to the temporal lobe's inner face
MIDLINE = 5.0  # mm, on either side of which a place has no side
ONE_SIDED = 0.8  # share of a cluster from which it has one
BOTH = "both sides"
EXTRA_AXIAL = 6.0  # mm under the brain mask's surface
MOSTLY = 0.7  # share of a cluster that lies so near the surface from which it is called extra-axial


def regions_of(points: np.ndarray) -> np.ndarray:
    """The name of the region of each of ``points (N, 3)``, MNI mm: ``(N,)`` of str."""
    across, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
    central_sulcus = -8 - 0.42 * (z - 15)
    sylvian_fissure = -6 + 0.5 * (10 - y)
    occipital_line = -62 - 0.38 * np.maximum(z + 10, 0)
    tentorium = -4 - 0.45 * np.maximum(across - 8, 0) - 0.2 * np.maximum(-65 - y, 0)
    names = np.where(y > central_sulcus, "frontal", "parietal").astype(object)
    names[(across > 18) & (y < 20) & (z < sylvian_fissure)] = "temporal"
    names[y < occipital_line] = "occipital"
    names[(names == "parietal") & (z < 0)] = "temporal"  # its inner face, below the parietal lobe
    names[(names == "temporal") & (across <= CISTERNS)] = "basal cisterns"
    names[(y < -36) & (z < tentorium)] = "cerebellum"
    for name, centre, radii in SOLIDS[::-1]:
        offset = (np.c_[across, y, z] - centre) / radii
        names[(offset**2).sum(1) < 1] = name
    return names


def side_of(points: np.ndarray) -> str:
    """``left``, ``right``, ``midline`` or ``both sides`` of ``points (N, 3)``, MNI mm."""
    if (np.abs(points[:, 0]) < MIDLINE).mean() > 0.5:
        return "midline"
    right = float((points[:, 0] > 0).mean())
    return "right" if right >= ONE_SIDED else "left" if right <= 1 - ONE_SIDED else BOTH


def describe(points: np.ndarray, depth: np.ndarray) -> dict[str, str]:
    """Side, region and name of a cluster, as a radiologist writes it: ``left frontal, extra-axial``.

    Args:
        points: of its voxels, ``(N, 3)`` MNI mm.
        depth: mm of each under the brain mask's surface, ``(N,)``.
    """
    names, counts = np.unique(regions_of(points).astype(str), return_counts=True)
    region, side = str(names[counts.argmax()]), side_of(points)
    sided = f"{region}, {BOTH}" if side == BOTH else f"{side} {region}"
    name = region if region in UNPAIRED else sided
    near = float((depth < EXTRA_AXIAL).mean()) > MOSTLY and not region.endswith(FLUID)
    return {"side": side, "region": region, "name": f"{name}, extra-axial" if near else name}
