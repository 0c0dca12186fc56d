"""Each number of quality control on volumes whose answer is known."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anomaly3d.errors import UserError
from anomaly3d.preprocessing.base import read_limits
from anomaly3d.preprocessing.quality import (
    Quality,
    air,
    coverage,
    mode,
    noise,
    slice_difference,
    turn,
)
from anomaly3d.scans.volume import Volume

GOOD = Quality(0.9, 8.0, 1.0, 1500, 33, -1000, 3, 1.2, 5, 36)
SHAPE = (41, 37, 33)


def test_a_good_scan_passes(ncct):
    assert ncct.judge(asdict(GOOD)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("registration", 0.5, "registration"),
        ("turn_deg", 90.0, "turned"),
        ("coverage", 0.8, "field of view"),
        ("brain_ml", 500.0, "volume"),
        ("brain_hu", 60.0, "HU"),
        ("air_hu", 0.0, "air"),
        ("noise_hu", 30.0, "noisy"),
        ("streak_hu", 9.0, "motion"),
        ("slice_mm", 12.0, "spacing"),
        ("slices", 8, "slices"),
        ("brain_hu", float("nan"), "HU"),  # what could not be measured does not pass
    ],
)
def test_each_number_out_of_its_limits_is_a_reason(ncct, name, value, words):
    (reason,) = ncct.judge(asdict(replace(GOOD, **{name: value})))
    assert words in reason


def test_limits_are_pairs():
    assert read_limits("x", [1, None]) == (1, None)
    with pytest.raises(UserError, match=r"quality\.noise_hu"):
        read_limits("noise_hu", 5.0)


def test_turn_is_the_rotation_of_an_affine_whatever_its_scale():
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0, 70, 0], degrees=True).as_matrix() @ np.diag([0.9, 1.1, 1.0])
    assert turn(matrix) == pytest.approx(70, abs=1e-6)


def test_coverage_is_the_share_of_the_template_in_view():
    grid = np.diag([2.0, 2, 2, 1])
    grid[:3, 3] = [-40, -36, -32]
    z = grid[2, 3] + 2 * np.arange(33)
    inner_table = Volume(np.where(np.abs(z) < 31, -1.0, 1.0) * np.ones(SHAPE), grid)
    whole, cut = np.eye(4), np.eye(4)
    scan = Volume(np.zeros((90, 90, 40), np.float32), np.diag([1.0, 1, 2, 1]) + shifted(-45, -45, -40))
    assert coverage(scan, inner_table, whole) == pytest.approx(1.0)
    cut[2, 3] = 20 + 40 - 31  # half of the 62 mm move out of the top
    assert coverage(scan, inner_table, cut) == pytest.approx(1 - (31 + 29 - 39) / 62, abs=0.04)


def shifted(*offset):
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = offset
    return matrix


def test_mode_and_air_ignore_the_tails():
    rng = np.random.default_rng(0)
    brain = np.r_[rng.normal(34, 4, 8000), rng.normal(8, 4, 3000), np.full(200, 300.0)]
    assert mode(brain) == pytest.approx(34, abs=1)
    data = np.full(SHAPE, -1000.0)
    data[10:20] = 40
    assert air(data) == -1000
    assert np.isnan(air(np.zeros(SHAPE)))


def test_noise_is_the_standard_deviation_of_white_noise_on_any_slope():
    rng = np.random.default_rng(0)
    ramp = np.linspace(20, 50, SHAPE[0])[:, None, None]
    hu = ramp + rng.normal(0, 5, SHAPE)
    assert noise(hu, np.ones(SHAPE, bool)) == pytest.approx(5, rel=0.05)


def test_slices_that_jump_are_seen_and_smooth_anatomy_is_not():
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.normal(0, 1, SHAPE), 6)
    smooth = 35 + 5 * smooth / smooth.std()
    inside = np.ones(SHAPE, bool)
    jumping = smooth + np.repeat(rng.normal(0, 8, SHAPE[2] // 3), 3)[None, None]
    thick = smooth[..., ::2]  # the same anatomy in slices twice as thick
    assert slice_difference(thick, inside[..., ::2], 1.5, 9.0) < 2
    calm, restless = (slice_difference(v, inside, 1.5, 4.5) for v in (smooth, jumping))
    assert calm < 2
    assert restless > 5
