"""Planes as radiologists look at them: patient's right on the left, upright, in the head's proportions."""

import numpy as np

from anomaly3d.scans.volume import GLYPHS, Volume, block_means, mark_sides, no_finer, side_by_side, three_planes

SHAPE, SPACING = (20, 30, 24), np.array([2.0, 2.0, 4.0])


def spot(x, y, z):
    volume = np.zeros(SHAPE, np.float32)
    volume[x, y, z] = 1
    return volume


def test_right_is_left_front_is_up_and_head_is_up():
    right, front, top = 17, 26, 20
    axial, coronal, sagittal = three_planes(spot(right, front, top), np.ones(3), (right, front, top))
    assert [plane.shape for plane in (axial, coronal, sagittal)] == [(30, 20), (24, 20), (24, 30)]
    assert np.argwhere(axial).tolist() == [[30 - 1 - front, 20 - 1 - right]]
    assert np.argwhere(coronal).tolist() == [[24 - 1 - top, 20 - 1 - right]]
    assert np.argwhere(sagittal).tolist() == [[24 - 1 - top, front]]


def test_planes_have_the_proportions_of_the_head():
    axial, coronal, sagittal = three_planes(np.ones(SHAPE), SPACING)
    assert [plane.shape for plane in (axial, coronal, sagittal)] == [(30, 20), (48, 20), (48, 30)]
    mask = three_planes(spot(10, 15, 12) > 0, SPACING, (10, 15, 12))[1]
    assert mask.dtype == bool
    assert mask.sum() == 2  # one voxel of 2 x 4 mm
    assert side_by_side(np.ones(SHAPE), SPACING).shape == (48, 70)


def test_the_sides_are_marked():
    marked = mark_sides(np.zeros((12, 20)), 1.0)
    for letter, first in (("R", 1), ("L", 15)):
        assert ["".join(".#"[int(pixel)] for pixel in row[first : first + 4]) for row in marked[1:6]] == list(
            GLYPHS[letter]
        )
    assert marked.sum() == sum(line.count("#") for glyph in GLYPHS.values() for line in glyph)


def test_fine_voxels_are_averaged_and_keep_their_place():
    rng = np.random.default_rng(0)
    affine = np.diag([0.5, 0.5, 0.6, 1.0])
    affine[:3, 3] = [-4, 3, 9]
    noise = Volume(rng.normal(0, 10, (41, 42, 31)).astype(np.float32), affine)
    averaged = no_finer(noise, 1.5)
    assert averaged.data.shape == (13, 14, 15)
    assert averaged.spacing.tolist() == [1.5, 1.5, 1.2]
    assert averaged.data.std() < 10 / 18**0.5 * 1.1
    x = np.arange(41, dtype=np.float32)[:, None, None] * 0.5 - 4
    ramp = no_finer(Volume(np.broadcast_to(x, noise.data.shape).copy(), affine), 1.5)
    np.testing.assert_allclose(ramp.data[:, 0, 0], ramp.affine[0, 3] + 1.5 * np.arange(13), atol=1e-5)
    assert block_means(noise, np.array([1, 1, 1])) is noise
    assert no_finer(averaged, 1.5) is averaged
