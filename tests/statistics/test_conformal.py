import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly3d.statistics.conformal import discoveries, p_values, threshold, weights_of
from tests.conftest import QUICK


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


SCORES = st.lists(st.integers(0, 6), min_size=2, max_size=12).map(lambda found: np.array(found, float))  # with ties
PEOPLE = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=3, max_size=14).filter(
    lambda found: len({person for person, _ in found}) > 1
)
RATES = st.sampled_from([0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9])


@QUICK
@given(scores=SCORES)
def test_each_of_exchangeable_scores_in_turn_keeps_the_promise_exactly(scores):
    """Each is once the new one: at most a share alpha has p <= alpha; without ties p is uniform."""
    n = len(scores)
    p = np.array([p_values(np.delete(scores, i), scores[i : i + 1])[0] for i in range(n)])
    assert ((p > 0) & (p <= 1)).all()
    for alpha in p:
        assert np.mean(p <= alpha + 1e-12) <= alpha + 1e-12
    order = np.random.default_rng(n).permutation(n).astype(float)
    untied = [p_values(np.delete(order, i), order[i : i + 1])[0] for i in range(n)]
    np.testing.assert_allclose(np.sort(untied), np.arange(1, n + 1) / n)


@QUICK
@given(people=PEOPLE)
def test_each_of_exchangeable_subjects_in_turn_keeps_the_promise_exactly(people):
    """Each person is once the new one, by any of their scans: people count alike, however many scans they have."""
    subjects, scores = np.array(people, float).T
    share = weights_of(subjects) / len(np.unique(subjects))
    p = np.empty(len(scores))
    for person in np.unique(subjects):
        new = subjects == person
        p[new] = p_values(scores[~new], scores[new], weights_of(subjects[~new]))
    for alpha in p:
        assert share[p <= alpha + 1e-12].sum() <= alpha + 1e-9


@QUICK
@given(people=PEOPLE, new=SCORES, rate=RATES)
def test_p_values_fall_with_the_score_and_thresholds_agree(people, new, rate):
    subjects, calibration = np.array(people, float).T
    ordered = np.sort(new)
    for weights in (None, weights_of(subjects)):
        p = p_values(calibration, ordered, weights)
        assert (np.diff(p) <= 0).all()
        assert p_values(calibration, np.array([-1.0]), weights) == 1
        flagged = ordered >= threshold(calibration, rate, weights)
        assert (flagged == (p <= rate + 1e-9)).all()
    plain = [(1 + (calibration >= score).sum()) / (1 + len(calibration)) for score in ordered]
    np.testing.assert_allclose(p_values(calibration, ordered), plain)


def test_rounding_does_not_lead_above_1():
    """Of which nothing could be discovered: scipy refuses such p-values."""
    p = p_values(np.zeros(7), np.zeros(1), weights_of(np.array(list("aaaaaab"))))
    assert p == 1
    assert discoveries(p, 0.1).tolist() == [False]


@QUICK
@given(calibration=SCORES, new=SCORES, times=st.integers(1, 4))
def test_scanning_everybody_more_often_changes_nothing(calibration, new, times):
    subjects = np.tile(np.arange(len(calibration)), times)
    again = p_values(np.tile(calibration, times), new, weights_of(subjects))
    np.testing.assert_allclose(again, p_values(calibration, new))


def test_what_has_no_score_has_no_p_value():
    found = p_values(np.array([1.0, 2.0, 3.0]), np.array([np.nan, 2.5]))
    assert np.isnan(found[0])
    assert found[1] == 0.5
