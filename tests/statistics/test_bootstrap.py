import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.statistics.bootstrap import jackknife_error, mean_interval, subject_weights, weighted_ap, weighted_auc


@pytest.fixture
def scans():
    rng = np.random.default_rng(3)
    labels = np.r_[np.zeros(23, int), np.ones(14, int)]
    return labels, np.round(rng.normal(labels), 1)  # with ties


def test_every_draw_agrees_with_scikit_learn(scans):
    labels, scores = scans
    weights = subject_weights(labels, None, np.random.default_rng(0), 50)
    for draw, auc, ap in zip(
        weights, weighted_auc(labels, scores, weights), weighted_ap(labels, scores, weights), strict=True
    ):
        assert auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=draw))
        assert ap == pytest.approx(average_precision_score(labels, scores, sample_weight=draw))


def test_draws_keep_the_number_of_subjects_of_each_class(scans):
    labels, _ = scans
    weights = subject_weights(labels, None, np.random.default_rng(0), 40)
    assert (weights[:, labels == 0].sum(1) == 23).all()
    assert (weights[:, labels == 1].sum(1) == 14).all()


def test_all_scans_of_a_subject_come_along():
    labels = np.array([0, 0, 0, 1, 1, 0])
    subjects = np.array(["a", "a", "b", "c", "c", "c"])  # c has both: an abnormal subject
    weights = subject_weights(labels, subjects, np.random.default_rng(0), 40)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, 3] == 1).all()  # it is the only one of its class


def test_the_jackknifes_error_of_a_mean_is_the_usual_one():
    values = np.random.default_rng(0).normal(size=30)
    error, smaller = jackknife_error(np.ones(30), None, lambda w: w @ values / w.sum(1))
    assert error == pytest.approx(values.std(ddof=1) / np.sqrt(30))
    assert smaller == 0
    owner = np.repeat(np.arange(10), 3)  # a subject's scans leave together
    together, _ = jackknife_error(np.ones(30), owner, lambda w: w @ values / w.sum(1))
    assert together == pytest.approx(values.reshape(10, 3).mean(1).std(ddof=1) / np.sqrt(10))


def test_the_mean_of_one_subject_has_no_interval():
    for values, subjects in (([0.8], None), ([0.8, 0.6], ["a", "a"])):
        mean, low, high = mean_interval(np.array(values), None if subjects is None else np.array(subjects))
        assert mean == pytest.approx(np.mean(values))
        assert np.isnan([low, high]).all()


def test_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(2, 3, 400)
    mean, low, high = mean_interval(values)
    half = 1.96 * values.std() / 20
    assert mean == pytest.approx(values.mean())
    assert [low, high] == pytest.approx([mean - half, mean + half], abs=0.05)
