import numpy as np
import pytest
from scipy.stats import ttest_rel

from anomaly3d.statistics.seeds import paired_difference, spread


def test_the_paired_test_is_students():
    a, b = np.array([0.71, 0.69, 0.75, 0.66]), np.array([0.65, 0.66, 0.70, 0.64])
    expected = ttest_rel(a, b)
    found = paired_difference(a - b)
    assert (found.value, found.p) == pytest.approx((float((a - b).mean()), expected.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_the_same_gap_with_every_seed_says_nothing_of_its_spread():
    found = paired_difference(np.full(3, 0.1))
    assert (found.value, found.low, found.high, found.p) == (pytest.approx(0.1), -1.0, 1.0, 1.0)


def test_the_interval_of_a_spread_covers_it_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    found = [spread(rng.normal(0.7, 0.02, 4)) for _ in range(2000)]
    assert np.mean([s["ci95"][0] <= 0.02 <= s["ci95"][1] for s in found]) == pytest.approx(0.95, abs=0.015)
    assert np.mean([s["value"] ** 2 for s in found]) == pytest.approx(0.02**2, rel=0.05)  # of a sample
    assert found[0]["n"] == 4
    assert spread(np.array([0.7])) is None
