import numpy as np
import pytest

from anomaly3d.statistics.auc import share
from anomaly3d.statistics.operating import at_threshold, f1_threshold, youden_threshold

LABELS = np.array([0, 0, 0, 0, 1, 1, 1])
SCORES = np.array([1.0, 2, 3, 5, 3, 4, 6])
OWNERS = np.array(list("aabbcde"))


def test_shares_at_a_threshold_by_hand():
    """3 is reached by three of three abnormal scans and by two of four normal ones, both of subject b."""
    found = at_threshold(LABELS, SCORES, 3.0, OWNERS)
    assert list(found) == ["threshold", "recall", "specificity", "accuracy", "precision"]
    assert found["threshold"] == 3.0
    shares = {name: (value["value"], value["n"]) for name, value in found.items() if name != "threshold"}
    expected = {"recall": (1, 3), "specificity": (2 / 4, 4), "accuracy": (5 / 7, 7), "precision": (3 / 5, 5)}
    assert shares == expected


def test_scans_of_one_subject_widen_each_share():
    found = at_threshold(LABELS, SCORES, 4.0, OWNERS)
    right, flagged = np.array([1, 1, 1, 0, 0, 1, 1], bool), SCORES >= 4
    assert found["recall"] == share(np.array([False, True, True]), np.arange(3))
    assert found["specificity"] == share(right[:4], OWNERS[:4])
    assert found["accuracy"] == share(right, OWNERS)
    assert found["precision"] == share(np.array([False, True, True]), OWNERS[flagged])
    several = np.repeat(OWNERS, 2)
    twice = at_threshold(np.repeat(LABELS, 2), np.repeat(SCORES, 2), 4.0, several)
    assert twice["specificity"]["ci95"] != at_threshold(LABELS, SCORES, 4.0, np.arange(7))["specificity"]["ci95"]


def test_no_threshold_has_no_shares():
    nothing = {"value": None, "ci95": None, "n": 0}
    found = at_threshold(LABELS, SCORES, np.inf, OWNERS)
    assert found == dict.fromkeys(("recall", "specificity", "accuracy", "precision"), nothing) | {"threshold": None}


def test_youdens_threshold_is_the_largest_sum_of_both_rates():
    gain = {t: (SCORES[LABELS == 1] >= t).mean() - (SCORES[LABELS == 0] >= t).mean() for t in SCORES}
    assert youden_threshold(LABELS, SCORES) == max(gain, key=gain.__getitem__) == 3
    assert gain[3] == pytest.approx(0.5)
    assert youden_threshold(LABELS, np.ones(7)) == 1  # and not infinite


def test_the_f1_threshold_is_the_largest_f1():
    def f1(t):
        hits = ((t <= SCORES) & (LABELS == 1)).sum()
        return 2 * hits / ((t <= SCORES).sum() + 3)

    values = {t: f1(t) for t in SCORES}
    assert f1_threshold(LABELS, SCORES) == max(values, key=values.__getitem__)
    assert f1_threshold(np.array([0, 0, 0, 1]), np.array([1.0, 2, 4, 3])) == 3
    assert f1_threshold(np.array([0, 0, 0, 1]), np.array([1.0, 2, 3, 4])) == 4, "the largest score may be it"
