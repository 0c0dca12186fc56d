"""From the small grid back to the scan's own, whatever that is: oblique, mirrored, anisotropic, its header rescaled."""

import nibabel as nib
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from anomaly3d.scans.volume import Volume
from anomaly3d.scoring.way_back import Found, on_own_grid, own_grid_maps
from tests.conftest import QUICK
from tests.toys.preprocessor import Standardised

SMALL = (6, 7, 5)  # voxels of the prepared volume
ANGLES = st.tuples(*[st.floats(-180, 180)] * 3)
POSES = st.builds(
    lambda angles, scale, shift: affine_of(angles, scale, (1, 1, 1), shift),
    st.tuples(*[st.floats(-40, 40)] * 3),
    st.tuples(*[st.floats(0.8, 1.2)] * 3),
    st.tuples(*[st.floats(-20, 20)] * 3),
)
SCANS = st.builds(
    lambda shape, angles, spacing, flip, shift: (shape, affine_of(angles, spacing, flip, shift)),
    st.tuples(*[st.integers(1, 9)] * 3),
    ANGLES,
    st.tuples(*[st.sampled_from([0.5, 1.1, 3.0, 5.0])] * 3),
    st.tuples(*[st.sampled_from([-1, 1])] * 3),
    st.tuples(*[st.floats(-15, 15)] * 3),
)


def affine_of(angles, spacing, flip, shift):
    """Voxel or MNI to world, about the middle of the small grid."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * spacing * np.array(flip)
    affine[:3, 3] = shift
    return affine


def small_grid():
    affine = np.diag([3.0, 4.0, 5.0, 1.0])
    affine[:3, 3] = -(np.array(SMALL) - 1) / 2 * [3, 4, 5]
    return affine


def original_of(shape, affine):
    """A scan as scanners write it: int16 with slope and intercept, a code for whose world it is, a fourth axis."""
    image = nib.Nifti1Image(np.zeros((*shape, 1), np.int16), affine)
    image.header.set_slope_inter(2, -1024)
    image.set_sform(affine, code=1)
    return image


def test_a_map_has_neither_texts_nor_window_of_its_scan():
    scan = original_of((4, 3, 5), np.eye(4))
    for key in ("descrip", "db_name", "aux_file"):
        scan.header[key] = b"SMITH^JOHN"
    scan.header.set_intent("estimate", name="SMITH")
    scan.header["cal_max"] = 80
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"SMITH^JOHN"))
    made = on_own_grid(scan, Volume(np.ones(SMALL, np.float32), small_grid()), np.eye(4), 0.0, np.float32)
    assert b"SMITH" not in made.to_bytes()
    assert made.header["cal_max"] == 0
    np.testing.assert_array_equal(made.affine, scan.affine)
    assert made.header["sform_code"] == 1


def places(shape, affine, pose):
    """Where a scan's voxels lie in those of the small grid ``(3, X, Y, Z)``, and which are surely between centres of
    voxels, and which outside: the outermost reach half their width beyond their centres."""
    voxels = np.indices(shape).reshape(3, -1)
    chain = np.linalg.inv(small_grid()) @ np.linalg.inv(pose) @ affine
    place = ((chain @ np.vstack([voxels, np.ones(voxels.shape[1])]))[:3]).reshape(3, *shape)
    beyond = np.maximum(-place, place - np.array(SMALL).reshape(3, 1, 1, 1) + 1).max(0)
    return place, beyond < -1e-3, beyond > 0.5 + 1e-3


def read_again(image):
    return nib.Nifti1Image.from_bytes(image.to_bytes())


@QUICK
@given(scan=SCANS, pose=POSES)
def test_a_linear_map_comes_back_at_every_voxel_of_the_scan(scan, pose):
    shape, affine = scan
    i, j, k = np.indices(SMALL)
    slope = Volume((10 + 3.0 * i - 2 * j + 7 * k).astype(np.float32), small_grid())
    place, inside, outside = places(shape, affine, pose)
    expected = 10 + 3 * place[0] - 2 * place[1] + 7 * place[2]
    original = original_of(shape, affine)
    for dtype, tolerance in ((np.float32, 1e-3), (np.int16, 0.501)):
        found = read_again(on_own_grid(original, slope, pose, -7.0, dtype))
        assert found.shape == shape
        assert found.get_data_dtype() == dtype
        np.testing.assert_allclose(found.affine, affine, atol=1e-5)
        assert int(found.header["sform_code"]) == 1
        data = found.get_fdata()
        np.testing.assert_allclose(data[inside], expected[inside], atol=tolerance)
        assert (data[outside] == -7).all()
    mask = read_again(on_own_grid(original, Volume(slope.data / 20, small_grid()), pose, 0.0, np.uint8)).get_fdata()
    clear = inside & (np.abs(expected - 10) > 1e-3)
    assert (mask[clear] == (expected > 10)[clear]).all()
    assert (mask[outside] == 0).all()


@QUICK
@given(scan=SCANS, pose=POSES)
def test_maps_are_in_the_preprocessors_unit_and_the_residual_inside_the_brain(scan, pose):
    """Even volumes, whose values are the same wherever they are taken."""
    shape, affine = scan
    place, inside, outside = places(shape, affine, pose)
    brain = np.zeros(SMALL, np.uint8)
    brain[3:] = 1
    even = np.ones(SMALL, np.float32)
    found = Found(0.5 * even, brain, -0.25 * even, {"logit": 4.5 * even}, small_grid(), pose)
    maps = own_grid_maps(original_of(shape, affine), found, Standardised(8, 40.0, {}))
    assert set(maps) == {"input", "reconstruction", "residual", "brain_mask", "logit"}
    data = {name: read_again(image).get_fdata() for name, image in maps.items()}
    known = inside & (np.abs(place[0] - 2.5) > 1e-3)  # the brain begins half-way between two voxels
    in_brain = known & (place[0] > 2.5)
    levels = {"input": (20, -40), "reconstruction": (-10, -40), "logit": (4.5, 0)}
    for name, (within, beyond) in levels.items():
        assert (data[name][known] == within).all()
        assert (data[name][outside] == beyond).all()
    assert (data["residual"][in_brain] == 30).all()
    assert (data["residual"][known & ~in_brain] == 0).all()
    assert (data["residual"][outside] == 0).all()
    assert (data["brain_mask"][known] == in_brain[known]).all()
    alone = own_grid_maps(
        original_of(shape, affine), Found(found.image, brain, None, {}, small_grid(), pose), Standardised(8, 40.0, {})
    )
    assert set(alone) == {"input", "brain_mask"}
