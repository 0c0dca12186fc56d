import numpy as np
import pandas as pd
import pytest

from anomaly3d.evaluation.thresholds import (
    conformal_rates,
    false_positives_by,
    operating_points,
    recall_by,
    site_shift,
)
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.statistics.operating import at_threshold, f1_threshold, youden_threshold


def test_the_papers_operating_point():
    labels = np.r_[np.ones(135, int), np.zeros(142, int)]
    scores = np.r_[np.ones(73), np.zeros(62), np.zeros(123), np.ones(19)]
    found = at_threshold(labels, scores, 0.5, np.arange(277))
    assert round(100 * found["recall"]["value"], 3) == 54.074
    assert round(100 * found["specificity"]["value"], 3) == 86.620
    assert round(100 * found["accuracy"]["value"], 3) == 70.758
    assert found["precision"]["value"] == pytest.approx(73 / 92)
    assert found["recall"]["n"] == 135


def test_oracles_are_the_best_thresholds_there_are():
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(40, int), np.ones(30, int)]
    scores = rng.normal(labels)

    def youden(t):
        return (scores[labels == 1] >= t).mean() + (scores[labels == 0] < t).mean()

    def f1(t):
        hits = (scores[labels == 1] >= t).sum()
        return 2 * hits / ((scores >= t).sum() + 30)

    assert youden(youden_threshold(labels, scores)) == pytest.approx(max(youden(t) for t in scores))
    assert f1(f1_threshold(labels, scores)) == pytest.approx(max(f1(t) for t in scores))
    assert np.isfinite(youden_threshold(np.array([0, 1]), np.array([1.0, 0.0])))


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "scan_id": list("abcdefgh"),
            "subject_id": list("abcdefgh"),
            "label": list("00000111"),
            "group": ["normal"] * 5 + ["tbi"] * 3,
            "site": list("AAABBAAA"),
            "age": ["30", "50", "80", "", "61", "20", "20", "20"],
            "sex": list("FMFMFMFM"),
            "lesions": [""] * 5 + ["subdural", "subdural;contusion", "epidural"],
            "lesion_ml": [""] * 5 + ["1.5", "30", "70"],
            "total": [0.1, 0.2, 0.9, 1.1, 1.2, 0.5, 1.5, 2.0],
        }
    )


@pytest.fixture
def calibration():
    return Calibration("own", "total", 0.2, [0.1, 0.2, 0.3, 1.0], 0.01, {})  # flagged: above all four


def test_locked_and_oracle_thresholds_are_told_apart(table, calibration):
    locked, youden, f1 = operating_points(table, ["total"], [calibration])
    assert locked["rule"].startswith("locked")
    assert locked["threshold"] == pytest.approx(1.0)
    assert (locked["recall"]["value"], locked["specificity"]["value"]) == (2 / 3, 3 / 5)
    assert youden["rule"].startswith("oracle")
    assert f1["rule"].startswith("oracle")


def test_too_few_calibration_scans_allow_no_threshold(table):
    few = Calibration("own", "total", 0.1, [0.1], 0.01, {})
    point = operating_points(table, ["total"], [few])[0]
    assert "10 % takes 9" in point["rule"]
    assert point["threshold"] is None
    for name in ("recall", "specificity", "accuracy", "precision"):
        assert point[name]["value"] is None  # not 0 %: nothing was decided
    assert few.flags(table["total"]) is None
    assert Calibration("own", "total", 0.1, [0.1] * 9, 0.01, {}).possible
    assert not Calibration("own", "total", 0.1, [0.1] * 8, 0.01, {}).possible


def test_without_calibration_scans_oracles_are_left_and_the_locked_row_says_so(table):
    locked, youden, _ = operating_points(table, ["total"], [])
    assert "there are no calibration scans" in locked["rule"]
    assert locked["threshold"] is locked["recall"]["value"] is None
    assert youden["rule"] == "oracle: Youden on the test scans"
    assert youden["threshold"] == pytest.approx(1.5)  # recall 2/3 without a false alarm
    assert (youden["recall"]["value"], youden["specificity"]["value"]) == (2 / 3, 1)


def test_labels_of_one_kind_leave_what_a_locked_threshold_does_to_them(table, calibration):
    (point,) = operating_points(table[table["label"] == "1"], ["total"], [calibration])
    assert point["recall"]["value"] == 2 / 3
    assert point["specificity"]["value"] is point["precision"]["value"] is point["accuracy"]["value"] is None
    assert operating_points(table[table["label"] == "9"], ["total"], [calibration]) == []


def test_recall_by_lesion_and_volume(table, calibration):
    found = recall_by(table, calibration)
    assert {k: (v["value"], v["n"]) for k, v in found["lesion"].items()} == {
        "epidural": (1, 1),
        "subdural": (0.5, 2),
        "contusion": (1, 1),
    }
    assert {k: v["value"] for k, v in found["volume"].items()} == {"0 to 2 ml": 0, "15 to 50 ml": 1, "over 50 ml": 1}


def test_false_positives_by_site_age_and_sex(table, calibration):
    found = false_positives_by(table, calibration)
    assert found["all"]["value"] == pytest.approx(2 / 5)
    assert {k: v["value"] for k, v in found["site"].items()} == {"A": 0, "B": 1}
    assert found["age"]["60 to 75 years"]["value"] == 1
    assert "0 to 40 years" in found["age"]
    assert found["sex"]["M"]["n"] == 2


def test_the_promise_is_held_against_each_site(table, calibration):
    found = {(c["site"], c["nominal"]): c["realised"]["value"] for c in conformal_rates(table, calibration)}
    assert found[("A", 0.1)] == found[("B", 0.1)] == 0  # four scans allow no p-value below 1/5
    few = Calibration("own", "total", 0.2, np.linspace(0, 1, 99).tolist(), 0.01, {})
    found = {(c["site"], c["nominal"]): c["realised"]["value"] for c in conformal_rates(table, few)}
    assert found[("B", 0.1)] == 1


def test_weights_that_do_not_add_up_exactly_keep_the_promise(table):
    """Nine people of three scans each: above them all p is 1/10 but for rounding, and a rate of 0.1 has it."""
    weights = [1 / 3] * 27
    above_all = Calibration("own", "total", 0.1, np.linspace(0, 0.05, 27).tolist(), 0.01, {}, weights)
    assert 0.1 < above_all.p_values(np.array([1.0]))[0] < 0.1 + 1e-12
    found = {(c["site"], c["nominal"]): c["realised"]["value"] for c in conformal_rates(table, above_all)}
    assert found[("A", 0.1)] == found[("B", 0.1)] == 1
    assert found[("A", 0.05)] == 0


def test_a_site_whose_healthy_scans_score_higher_is_seen(table):
    found = site_shift(table, "total")
    assert found["B"]["auc"] == 1
    assert found["B"]["against"] == "A"
    assert found["B"]["n"] == [3, 2]
    assert site_shift(table[table["site"] == "A"], "total") == {}
    assert site_shift(table.assign(site=table["site"].replace("B", "")), "total") == {}  # of unknown site
    nothing = site_shift(table.assign(total=table["total"].where(table["site"] == "B", 0.0)), "total")
    assert nothing["B"]["median_ratio"] is None  # and no infinity, which JSON does not have
