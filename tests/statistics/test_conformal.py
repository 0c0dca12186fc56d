import numpy as np
import pytest

from anomaly3d.statistics.conformal import discoveries, p_values, threshold, weights_of


def test_p_values_by_hand():
    calibration = np.array([1.0, 2, 3, 4])
    assert p_values(calibration, np.array([0, 3, 3.5, 9])) == pytest.approx([1, 3 / 5, 2 / 5, 1 / 5])


@pytest.mark.parametrize("count", [9, 10, 32, 400])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_a_score_is_flagged_exactly_when_its_p_value_is_small(count, rate):
    rng = np.random.default_rng(count)
    calibration = np.round(rng.normal(size=count), 1)  # with ties
    scores = np.r_[np.round(rng.normal(size=200), 1), calibration]
    flagged = scores >= threshold(calibration, rate)
    assert (flagged == (p_values(calibration, scores) <= rate + 1e-12)).all()


def test_too_few_calibration_scans_flag_nothing():
    assert threshold(np.arange(8.0), 0.1) == np.inf
    assert np.isfinite(threshold(np.arange(9.0), 0.1))


def test_healthy_scans_are_flagged_no_more_often_than_promised():
    rng = np.random.default_rng(0)
    shares = [np.mean(p_values(rng.normal(size=50), rng.normal(size=50)) <= 0.1) for _ in range(400)]
    assert 0.085 < np.mean(shares) < 0.105  # 5 of 51 is the largest rate that 50 scans allow


def test_discoveries_are_those_of_benjamini_and_hochberg():
    p = np.array([0.001, 0.5, 0.04, 0.011])  # sorted: 0.001 <= 0.025, 0.011 <= 0.05, 0.04 <= 0.075, 0.5 > 0.1
    assert discoveries(p, 0.1).tolist() == [True, False, True, True]
    assert discoveries(np.array([]), 0.1).tolist() == []


def test_scans_of_one_subject_weigh_as_one():
    calibration, subjects = np.array([1.0, 2, 3, 4, 5]), np.array(list("aabcb"))
    weights = weights_of(subjects)
    assert weights == pytest.approx([1 / 2, 1 / 2, 1 / 2, 1, 1 / 2])
    assert p_values(calibration, np.array([0, 3, 4.5, 9]), weights) == pytest.approx([1, 3 / 4, 1.5 / 4, 1 / 4])
    scores = np.linspace(0, 6, 61)
    for rate in (0.2, 0.25, 0.4, 0.7):
        flagged = scores >= threshold(calibration, rate, weights)
        assert (flagged == (p_values(calibration, scores, weights) <= rate + 1e-12)).all()


def test_few_subjects_with_many_scans_keep_the_promise():
    """Twelve subjects of ten scans: the promise is for a scan of a new subject; without weights it is broken."""
    rng = np.random.default_rng(0)
    subjects = np.repeat(np.arange(12), 10)
    weights, rates = weights_of(subjects), []
    for _ in range(2000):
        people = rng.normal(size=13)
        calibration = people[subjects] + 0.2 * rng.normal(size=120)
        new = people[12:] + 0.2 * rng.normal(size=1)
        rates.append([p_values(calibration, new, w)[0] <= 0.1 for w in (None, weights)])
    unweighted, weighted = np.mean(rates, 0)
    assert unweighted > 0.12
    assert weighted < 0.11
