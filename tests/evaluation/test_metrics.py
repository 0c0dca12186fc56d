import pandas as pd
import pytest

from anomaly3d.evaluation.judging import agreement
from anomaly3d.evaluation.metrics import of_lesion, summarise
from anomaly3d.report.page import set_aside_text

SCORED = pd.DataFrame(
    {
        "scan_id": list("abcdef"),
        "subject_id": list("abcdef"),
        "cohort": "x",
        "label": ["0", "0", "1", "1", "1", "0"],
        "group": ["normal", "normal", "tbi", "tbi", "postoperative", "low_quality"],
        "lesions": ["", "", "subdural;contusion", "epidural", "craniectomy", "motion"],
        "total": [0.1, 0.4, 0.3, 0.9, 5.0, 6.0],
    }
)


def test_only_normal_and_tbi_scans_are_ranked():
    metrics = summarise(SCORED, {})
    found = metrics["results"]["all"]["auc"]
    assert found["value"] == pytest.approx(3 / 4)
    assert (found["n_normal"], found["n_abnormal"]) == (2, 2)
    assert metrics["results"]["rejected_flagged"] is None


def test_a_cohort_may_be_called_as_a_detector_is():
    worst = SCORED.assign(total=-SCORED["total"])
    found = summarise(SCORED.assign(cohort="pca"), {"pca": worst})["results"]
    assert found["cohort"]["pca"]["auc"]["value"] == pytest.approx(3 / 4)
    assert found["other"]["pca"]["auc"]["value"] == pytest.approx(1 / 4)


def test_a_scan_counts_for_each_of_its_lesions():
    assert list(of_lesion(SCORED[:4], "contusion")["scan_id"]) == ["a", "b", "c"]


def test_lesions_are_told_by_both_scores():
    """The figure of lesions shows the chosen score's."""
    chosen = SCORED.assign(peak=-SCORED["total"])
    metrics = summarise(chosen, {}, selected="peak")
    assert metrics["lesion"].keys() == metrics["lesion_selected"].keys() >= {"subdural", "epidural"}
    for lesion, found in metrics["lesion"].items():
        assert found["auc"]["value"] == pytest.approx(1 - metrics["lesion_selected"][lesion]["auc"]["value"])
        assert found["auc"]["n_abnormal"] == 1
        assert found["chance_ap"] == metrics["lesion_selected"][lesion]["chance_ap"]


def test_rejected_scans_are_counted_by_label_and_as_flagged():
    set_aside = pd.DataFrame(
        {
            "subject_id": list("ghij"),
            "label": ["1", "0", "", "0"],
            "group": ["tbi", "normal", "", "low_quality"],
            "verdict": ["rejected", "rejected", "unreadable", "rejected"],
        }
    )
    metrics = summarise(SCORED, {}, set_aside)
    assert metrics["set_aside"] == {"rejected": {"normal": 2, "abnormal": 1}, "unreadable": {"unknown": 1}}
    flagged = metrics["results"]["rejected_flagged"]["auc"]
    # three abnormal (0.3, 0.9, top) against three normal (0.1, 0.4, top): 1 + 2 + 2.5 of 9 pairs
    assert flagged["value"] == pytest.approx(5.5 / 9)
    assert set_aside_text(metrics["set_aside"]) == "3 rejected (2 normal, 1 abnormal) and 1 unreadable (1 unknown)"


def test_rankings_agree_by_their_order_and_not_at_all_where_one_has_none():
    """A method that pasted anomalies leave alone, such as one that reads another program's maps, ranks nothing."""
    oracle = {name: {"value": value} for name, value in (("a", 0.6), ("b", 0.7), ("c", 0.9))}
    assert agreement({"a": 0.5, "b": 0.8, "c": 0.7}, oracle) == pytest.approx(0.5)
    assert agreement(dict.fromkeys("abc", 0.5), oracle) is None
    assert agreement({"a": 0.5, "b": 0.8}, oracle) is None  # kept by a version that did not have the third
