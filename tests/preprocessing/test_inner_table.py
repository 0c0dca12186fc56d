"""A round head whose inner table is known, scanned with voxels of 0.9 x 1.1 x 3 mm by a scanner that blurs."""

import numpy as np
import pytest
from scipy import ndimage

from anomaly3d.preprocessing.brain_mask import distance, intracranial_core
from anomaly3d.preprocessing.crop import working_grid
from anomaly3d.preprocessing.inner_table import Tissue, tissue_inside, tissue_of_mask
from anomaly3d.preprocessing.rim import corrected
from anomaly3d.scans.volume import Volume, no_finer, resample

WORKING = 1.5
INNER, OUTER, SCALP = 45.0, 51.0, 56.0  # mm
SPACING = np.array([0.9, 1.1, 3.0])
AFFINE, SHAPE = working_grid(WORKING)


def millimetres(affine, shape):
    """World x, y, z and the distance to the middle, at the voxels of a grid."""
    x, y, z = (affine[i, 3] + affine[i, i] * np.arange(shape[i]) for i in range(3))
    x, y, z = x[:, None, None], y[None, :, None], z[None, None]
    return x, y, z, np.sqrt(x**2 + y**2 + z**2)


def scanned(blood_mm=0.0, cupping=0.0, hole=False):
    """The scan: brain of 35 HU, brighter towards the skull by ``cupping``, a calcification, an eye behind thin bone."""
    fine = np.diag([*SPACING / 3, 1.0])
    shape = tuple((120 / SPACING).astype(int) * 3)
    fine[:3, 3] = -(np.array(shape) - 1) / 2 * np.diag(fine)[:3]
    x, y, z, r = millimetres(fine, shape)
    hu = np.select([r > SCALP, r > OUTER, r > INNER], [-1000.0, 40.0, 1200.0], 35 + cupping * np.exp((r - INNER) / 5))
    if blood_mm:
        hu[(r <= INNER) & (r > INNER - blood_mm) & (x > 20)] += 30
    if hole:  # a craniectomy
        hu[(r > INNER) & (r <= SCALP) & (x > 36)] = 40
    hu[x**2 + (y - 10) ** 2 + z**2 < 16] = 400
    eye = np.sqrt(x**2 + (y - 55) ** 2 + (z + 20) ** 2)
    hu[eye < 13] = 900
    hu[eye < 11.5] = 20
    blurred = ndimage.gaussian_filter(hu, 0.6 / (SPACING / 3))
    blocks = no_finer(Volume(blurred.astype(np.float32), fine), 1e-6)
    nx, ny, nz = (n // 3 for n in shape)
    data = blocks.data.reshape(nx, 3, ny, 3, nz, 3).mean((1, 3, 5))
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = fine[:3, 3] + SPACING / 3
    return Volume(data + np.random.default_rng(0).normal(0, 3, data.shape).astype(np.float32), affine)


def examined(scan):
    """What is found, and the distance to the head's middle on the working grid."""
    *_, z, r = millimetres(AFFINE, SHAPE)
    hu = resample(no_finer(scan, WORKING), AFFINE, SHAPE, fill=-1024)
    densest = resample(Volume(ndimage.maximum_filter(scan.data, (3, 3, 1)), scan.affine), AFFINE, SHAPE, fill=-1024)
    core = intracranial_core(hu, densest, (r - 44).astype(np.float32), z, WORKING)
    return tissue_inside(scan, core, AFFINE, np.eye(4), WORKING), r


def test_the_edge_lies_at_the_inner_table_to_a_part_of_a_voxel():
    found, r = examined(scanned())
    ml = found.share.sum() * WORKING**3 / 1000
    radius = np.cbrt(ml * 1000 * 3 / (4 * np.pi))
    assert radius == pytest.approx(INNER, abs=0.4)
    assert found.mask[r < INNER - 1.5].all()
    assert not found.mask[r > INNER + 1.5].any()  # no scalp, no eye


def test_blood_at_the_inner_table_is_inside_and_the_scalp_is_not():
    found, r = examined(scanned(blood_mm=7.0))
    x, _, z, _ = millimetres(AFFINE, SHAPE)
    inside = (r < INNER) & (z > -60)
    assert 2 * (found.mask & inside).sum() / (found.mask.sum() + inside.sum()) > 0.97
    assert found.mask[(r < INNER) & (r > INNER - 7) & (x > 20)].mean() > 0.97
    assert not found.mask[r > OUTER - 1].any()


def test_a_calcification_stays_what_it_is():
    found, _ = examined(scanned())
    x, y, z, _ = millimetres(AFFINE, SHAPE)
    middle = x**2 + (y - 10) ** 2 + z**2 < 4
    assert found.mask[middle].all()
    assert found.hu[middle].mean() > 300
    flat = corrected(found, 2, WORKING)
    assert flat[middle].mean() > 300


def test_where_bone_is_missing_the_template_bounds_the_brain():
    found, r = examined(scanned(hole=True))
    x, *_ = millimetres(AFFINE, SHAPE)
    assert found.mask[(r < INNER - 1.5)].all()
    assert not found.mask[r > 44 + 8 + 4].any()
    assert not found.mask[(r > INNER + 1.5) & (x < 30)].any()


def test_the_rim_is_flat_and_blood_on_one_side_stays():
    with_blood, r = examined(scanned(blood_mm=3.0, cupping=25.0))
    without, _ = examined(scanned(cupping=25.0))
    x, *_ = millimetres(AFFINE, SHAPE)
    raw = np.where(without.weight > 0.5, without.hu, np.nan)
    flat = corrected(without, 2, WORKING)
    last = (r < INNER - 0.5) & (r > INNER - 3)
    assert np.nanmedian(raw[last]) > 45  # before
    for layer in (last, (r < INNER - 3) & (r > INNER - 6), (r < INNER - 6) & (r > INNER - 12)):
        assert np.median(flat[layer]) == pytest.approx(np.median(flat[r < 25]), abs=4)
    blood = (r < INNER - 0.5) & (r > INNER - 2.5) & (x > 26)
    gained = (corrected(with_blood, 2, WORKING) - flat)[blood]
    assert gained.mean() > 0.7 * 30
    elsewhere = (r < INNER) & (x < 10)
    assert abs(corrected(with_blood, 2, WORKING) - flat)[elsewhere].mean() < 1


def test_tissue_is_carried_to_where_bone_hides_it_and_no_further():
    share = np.zeros((12, 13, 14), np.float32)
    share[2:10, 2:10, 2:10] = 1
    weight = share.copy()
    weight[2] = 0
    hu = np.where(weight > 0, 60, 0).astype(np.float32)
    whole = corrected(Tissue(share, weight, hu), 2, WORKING)
    np.testing.assert_allclose(whole[share > 0], 60, rtol=1e-5)
    assert (whole[share == 0] == 0).all()


def test_in_a_given_mask_bone_beside_the_skull_does_not_count():
    share = np.ones((4, 5, 6), np.float32)
    hu = np.full(share.shape, 40, np.float32)
    hu[0], hu[3] = 300, 300
    near = np.zeros(share.shape, bool)
    near[0] = True
    found = tissue_of_mask(hu, share, near)
    assert (found.weight[0] == 0).all()
    assert (found.hu[3] == 300).all()  # in the depth: a calcification


def test_an_empty_edge_is_no_failure():
    """A brain too small for its layers to have medians stays as it is."""
    share = np.zeros((9, 9, 9), np.float32)
    share[3:6, 3:6, 3:6] = 1
    hu = np.where(share > 0, 37, 0).astype(np.float32)
    np.testing.assert_allclose(corrected(Tissue(share, share, hu), 2, WORKING), hu)
    assert distance(share > 0.5, WORKING).max() < 4
