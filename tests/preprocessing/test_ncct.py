"""The seven steps in their order: a scan with a planted pattern against a plain second implementation of them."""

from itertools import product

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.inner_table import Tissue
from anomaly3d.preprocessing.ncct import NCCT
from anomaly3d.preprocessing.registration import Registration
from anomaly3d.preprocessing.rim import corrected
from anomaly3d.scans.volume import Volume
from tests.conftest import preprocessing

WORKING, RESOLUTION, MARGIN = 3.0, 16, 7.0
LOW, HIGH = np.array([-84.0, -118.5, -73.5]), np.array([84.0, 85.5, 94.5])  # MNI mm of the working grid
CENTRE, RADII = np.array([4.0, -20.0, 6.0]), np.array([48.0, 62.0, 40.0])  # MNI mm of the brain, which is no ball
POSE = np.eye(4)  # MNI to the scan's world: turned, stretched, shifted
POSE[:3, :3] = Rotation.from_euler("xyz", (6, -4, 9), degrees=True).as_matrix() * (1.04, 0.97, 1.02)
POSE[:3, 3] = 5, -11, 23
SPACING, SHAPE = np.array([1.45, 4.0, 2.0]), (102, 46, 80)  # mm: coronal slices, of which x is averaged in pairs
AFFINE = np.diag([*SPACING, 1.0])
AFFINE[:3, 3] = -70, -122, -55


def mni(affine, shape, to_mni=np.eye(4)):  # noqa: B008
    """MNI mm ``(3, X, Y, Z)`` of a grid's voxels."""
    voxels = np.indices(shape).reshape(3, -1)
    return ((to_mni @ affine)[:3] @ np.vstack([voxels, np.ones(voxels.shape[1])])).reshape(3, *shape)


@pytest.fixture(scope="module")
def scan():
    """Brain with a wave, a bright lump, a rim that is 25 HU brighter than it should be, bone in it above; skull."""
    place = mni(AFFINE, SHAPE, np.linalg.inv(POSE))
    x, y, z = place
    r = np.sqrt((((place - CENTRE[:, None, None, None]) / RADII[:, None, None, None]) ** 2).sum(0))
    hu = 35 + 12 * np.sin(x / 7) * np.cos(y / 9 + z / 11) + 25 * (r > 0.93)
    hu[(x - 20) ** 2 + (y + 40) ** 2 + (z - 12) ** 2 < 12**2] = 85
    hu = np.select([r > 1.25, r > 1, (r > 0.9) & (z > 30)], [-1000.0, 1100, 400], hu)
    hu += np.random.default_rng(0).normal(0, 3, SHAPE)
    masks = {"lesion_mask": (r < 0.8) & (x > 10), "brain": r < 1}
    return Volume(hu.astype(np.float32), AFFINE), {k: Volume(v.astype(np.float32), AFFINE) for k, v in masks.items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A preprocessor of the config with changes, whose template is a ball and whose registration gives ``POSE``."""
    affine = np.diag([6.0, 6, 6, 1])
    affine[:3, 3] = -96, -130, -100
    inner_table = np.linalg.norm(mni(affine, (32, 38, 34)) - np.array([0, -18, 8])[:, None, None, None], axis=0) - 71
    path = tmp_path_factory.mktemp("template") / "ball.nii.gz"
    nib.save(nib.Nifti1Image(np.stack([0 * inner_table, inner_table], -1).astype(np.float32), affine), path)

    class Placed(NCCT):
        def register(self, scan, fault):
            return Registration(POSE, 0.9)

    def make(**changes):
        fixed = {"resolution": RESOLUTION, "working_spacing": WORKING, "crop_margin": MARGIN}
        ncct = Placed(**{k: v for k, v in preprocessing(**{**fixed, **changes}).items() if k != "_target_"})
        ncct._template_path = path
        return ncct

    return make


def template_box():
    """Outer faces in mm of the box around the ball's voxels, 6 mm wide, above z = -70."""
    axes = [low + 6 * np.arange(n) for low, n in zip((-96, -130, -100), (32, 38, 34), strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    inside = (np.sqrt(x**2 + (y + 18) ** 2 + (z - 8) ** 2) < 71) & (z > -70)
    return [(a[inside].min() - 3 - MARGIN, a[inside].max() + 3 + MARGIN) for a in (x, y, z)]


def interpolated(data, place, fill):
    """Linear between voxels at ``place (3, ...)``; the outermost reach half a voxel beyond their centre."""
    ends = np.reshape(data.shape, (3, *[1] * (place.ndim - 1))) - 0.5
    values = ndimage.map_coordinates(data, place, order=1, mode="nearest")
    return np.where(((place >= -0.5) & (place < ends)).all(0), values, fill)


def plain(scan, brain, lesion, crop, rim, smoothing, window):
    """Image, brain mask, lesion mask and affine by the steps of the paper, one after the other."""
    low, high = window
    shape = tuple(int(n) for n in np.ceil((HIGH - LOW) / WORKING) + 1)
    grid = np.diag([WORKING] * 3 + [1.0])
    grid[:3, 3] = LOW

    def sampled(data, affine, fill):  # 1: into MNI space
        place = np.linalg.inv(affine) @ POSE @ np.vstack([mni(grid, shape).reshape(3, -1), np.ones(np.prod(shape))])
        return interpolated(data, place[:3], fill).reshape(shape)

    pairs = AFFINE.copy()
    pairs[0] = [2 * SPACING[0], 0, 0, AFFINE[0, 3] + SPACING[0] / 2]
    hu = sampled((scan[::2] + scan[1::2]) / 2, pairs, -1024)
    share = sampled(brain, AFFINE, 0)  # 3: the brain
    inside = share > 0.5
    if rim:
        near_skull = ndimage.distance_transform_edt(inside, WORKING) <= 5
        weight = np.where((hu >= 100) & near_skull, 0, share)
        tissue = Tissue(*(v.astype(np.float32) for v in (share, weight, np.where(weight >= 0.1, hu, 0))))
        hu = corrected(tissue, 1, WORKING)  # along y, across the coronal slices
    weight = share if rim else inside
    hu = weight * np.clip(hu, low, high) + (1 - weight) * low
    if crop == "scan":  # 4: the crop
        where = np.argwhere(inside)
        first, last = LOW + WORKING * (where.min(0) - 0.5), LOW + WORKING * (where.max(0) + 0.5)
        box = list(zip(first, last, strict=True))
    else:
        box = template_box()
    spacing = np.array([(b - a) / RESOLUTION for a, b in box])
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [a + mm / 2 for (a, _), mm in zip(box, spacing, strict=True)]
    place = (mni(affine, (RESOLUTION,) * 3) - LOW[:, None, None, None]) / WORKING

    def shrunk(data, sigma, fill):  # 5: smooth, then resize
        smooth = ndimage.gaussian_filter(data.astype(float), sigma * spacing / WORKING, mode="constant", cval=fill)
        return interpolated(smooth, place, fill)

    small = np.clip(shrunk(hu, smoothing, low), low, high)  # 6: the window
    image = 2 * (small - low) / (high - low) - 1  # 7: the range
    lesion = sampled(lesion, AFFINE, 0) > 0.5
    return image, shrunk(share, 0.5, 0) > 0.5, shrunk(lesion, 0.5, 0) > 0.5, affine


CHOICES = [
    *((crop, rim, 0.5, (-20.0, 100.0)) for crop, rim in product(("template", "scan"), (False, True))),
    ("scan", True, 0.0, (0.0, 80.0)),
    ("template", False, 1.1, (-50.0, 150.0)),
]


@pytest.mark.parametrize(("crop", "rim", "smoothing", "window"), CHOICES)
def test_a_prepared_scan_is_that_of_the_plain_steps(scan, made, crop, rim, smoothing, window):
    volume, masks = scan
    ncct = made(crop=crop, correct_rim=rim, smoothing=smoothing, window=list(window))
    found = ncct.prepare(volume, Companions(masks["brain"], {"lesion": masks["lesion_mask"]}, twin=volume))
    image, brain, lesion, affine = plain(
        volume.data, masks["brain"].data, masks["lesion_mask"].data, crop, rim, smoothing, window
    )
    np.testing.assert_allclose(found.affine, affine, rtol=1e-9)
    np.testing.assert_allclose(found.image, image, atol=1e-4)
    assert np.ptp(image) > 0.9
    assert (found.brain_mask != brain).mean() < 1e-3  # a share of exactly a half may fall either way
    assert (found.extra["lesion"] != lesion).mean() < 1e-3
    assert 0.005 < lesion.mean() < brain.mean()
    assert np.array_equal(found.extra["twin"], found.image)  # the same scan, the same way
    assert np.array_equal(found.mni_to_scan, POSE)
    np.testing.assert_allclose(ncct.to_physical(np.array([-1.0, 0, 1])), [window[0], sum(window) / 2, window[1]])


def test_the_planted_pattern_is_where_it_was_planted(scan, made):
    """Unsmoothed: the lump's HU at its middle in MNI, the lowest value outside of the brain."""
    found = made(correct_rim=False, smoothing=0.0).prepare(scan[0], Companions(scan[1]["brain"]))
    lump = tuple(np.rint(np.linalg.inv(found.affine) @ [20, -40, 12, 1]).astype(int)[:3])
    assert found.image[lump] == pytest.approx((85 + 20) / 60 - 1, abs=0.1)
    place = mni(found.affine, found.image.shape)
    r = np.sqrt((((place - CENTRE[:, None, None, None]) / RADII[:, None, None, None]) ** 2).sum(0))
    assert (found.image[r > 1.2] == -1).all()
    assert found.brain_mask[r < 0.9].all()
    assert not found.brain_mask[r > 1.1].any()


def test_the_rim_is_bright_without_its_correction_and_flat_with_it(scan, made):
    above = []
    for rim in (False, True):
        ncct = made(correct_rim=rim, smoothing=0.0, resolution=48)
        found = ncct.prepare(scan[0], Companions(scan[1]["brain"]))
        place = mni(found.affine, found.image.shape)
        r = np.sqrt((((place - CENTRE[:, None, None, None]) / RADII[:, None, None, None]) ** 2).sum(0))
        hu = ncct.to_physical(found.image)
        above.append(np.median(hu[(r > 0.94) & (r < 0.97) & (place[2] < 28)]) - np.median(hu[r < 0.6]))
    assert above[0] > 15
    assert abs(above[1]) < above[0] / 4
