"""Names of places whose MNI coordinates are known from the literature."""

import numpy as np
import pytest

from anomaly3d.atlas.regions import describe, regions_of, side_of

KNOWN = {
    "frontal": [(37, -20, 58), (50, 15, 10), (25, 40, 35), (5, 50, 20), (20, 30, -18)],
    "parietal": [(35, -45, 55), (58, -35, 35), (45, -62, 40), (5, -65, 45)],
    "temporal": [
        *((50, -20, 4), (60, -40, 5), (40, 12, -30), (35, -45, -14), (27, -15, -20), (55, -45, -10)),
        *((17, -5, -20), (18, -32, -14), (17, -30, -10)),  # amygdala, parahippocampal gyrus
    ],
    "basal cisterns": [(0, 0, -20), (4, -8, -22)],
    "occipital": [(8, -90, 0), (10, -85, 25), (25, -90, 10), (12, -72, -3)],
    "cerebellum": [(25, -65, -35), (5, -60, -20), (35, -70, -45), (40, -60, -40)],
    "brainstem": [(0, -25, -32), (5, -28, -14), (0, -40, -55)],
    "thalamus": [(11, -18, 8)],
    "basal ganglia": [(25, 2, 2), (28, -8, 0), (13, 14, 6)],
    "insula": [(40, 8, 0)],
    "lateral ventricle": [(12, -10, 22), (8, 25, 8), (25, -42, 12)],
    "third ventricle": [(0, -10, 0)],
    "fourth ventricle": [(0, -46, -30)],
}


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("name", KNOWN)
def test_known_coordinates_have_their_names(name, side):
    points = np.array(KNOWN[name], float) * [side, 1, 1]
    assert list(regions_of(points)) == [name] * len(points)


def ball(centre, radius=6):
    offset = np.stack(np.meshgrid(*[np.arange(-radius, radius + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
    return np.array(centre, float) + offset[(offset**2).sum(1) <= radius**2]


def test_a_cluster_is_named_as_a_radiologist_would():
    def name(centre, depth=20.0):
        points = ball(centre)
        return describe(points, np.full(len(points), depth))["name"]

    assert name((-40, 35, 20)) == "left frontal"
    assert name((-40, 35, 20), depth=3.0) == "left frontal, extra-axial"
    assert name((25, 2, 2)) == "right basal ganglia"
    assert name((24, -42, 12)) == "right lateral ventricle"
    assert name((24, -42, 12), depth=3.0) == "right lateral ventricle"
    assert name((0, -25, -32)) == "brainstem"
    assert name((-30, -65, -38)) == "left cerebellum"
    assert name((0, 0, -20), depth=3.0) == "basal cisterns"


def test_sides():
    assert side_of(ball((20, 0, 0))) == "right"
    assert side_of(ball((-20, 0, 0))) == "left"
    assert side_of(ball((0, 0, 0), 3)) == "midline"
    assert side_of(np.r_[ball((20, 0, 0)), ball((-20, 0, 0))]) == "both sides"
    mixed = np.c_[np.r_[np.full(75, 20.0), np.full(25, -20.0)], np.zeros((100, 2))]
    assert side_of(mixed) == "both sides"
    assert side_of(mixed[5:]) == "both sides"
    assert side_of(mixed[:90]) == "right"


def test_near_the_surface_is_most_of_it():
    points = ball((-40, 35, 20))
    depth = np.where(np.arange(len(points)) < 0.6 * len(points), 3.0, 9.0)
    assert describe(points, depth)["name"] == "left frontal"
    across = np.r_[points, points * [-1, 1, 1]]
    assert describe(across, np.r_[depth, depth])["name"] == "frontal, both sides"
