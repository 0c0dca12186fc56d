import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.evaluation.metrics import of_lesion, summarise
from anomaly3d.evaluation.statistics import auc, average_precision, rates, youden_oracle


def study(n=40, m=30, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return np.r_[np.zeros(n, int), np.ones(m, int)], np.r_[rng.normal(0, 1, n), rng.normal(shift, 1, m)]


def test_the_papers_operating_point():
    found = rates(73, 135, 123, 142)
    assert round(100 * found["recall"], 3) == 54.074
    assert round(100 * found["specificity"], 3) == 86.620
    assert round(100 * found["accuracy"], 3) == 70.758


def test_auc_agrees_with_scikit_learn_also_with_ties_and_large_scores():
    labels, scores = study()
    scores = 1000 * np.round(scores, 1)
    assert auc(labels, scores).value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_delong_variance_agrees_with_its_definition():
    labels, scores = study(12, 9)
    positive, negative = scores[labels == 1], scores[labels == 0]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    variance = wins.mean(1).var(ddof=1) / 9 + wins.mean(0).var(ddof=1) / 12
    value = wins.mean()
    found = auc(labels, scores)
    spread = (np.log(found.high / (1 - found.high)) - np.log(found.low / (1 - found.low))) / (2 * 1.959963985)
    assert spread == pytest.approx(np.sqrt(variance) / (value * (1 - value)), rel=1e-6)


def test_interval_of_auc_covers():
    truth = 0.7602499  # Phi(1 / sqrt 2)
    covered = [e.low <= truth <= e.high for e in (auc(*study(60, 60, seed=s)) for s in range(400))]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_average_precision_agrees_with_scikit_learn():
    labels, scores = study()
    estimate = average_precision(labels, scores)
    assert estimate.value == pytest.approx(average_precision_score(labels, scores))
    assert estimate.low < estimate.value < estimate.high


def test_youden_is_the_best_threshold_there_is():
    labels, scores = study()
    found = youden_oracle(labels, scores)
    best = max((scores[labels == 1] >= t).mean() + (scores[labels == 0] < t).mean() for t in scores)
    assert found["recall"] + found["specificity"] == pytest.approx(best)


def test_an_auc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="normal and abnormal"):
        auc(np.ones(3, int), np.arange(3.0))


def table():
    labels, scores = study(20, 12)
    lesions = [""] * 20 + ["epidural", "subdural;epidural", "subdural", "intraparenchymal"] * 3
    return pd.DataFrame(
        {
            "scan_id": [str(i) for i in range(32)],
            "cohort": ["a", "b"] * 16,
            "label": labels.astype(str),
            "group": np.where(labels == 1, "tbi", "normal"),
            "lesions": lesions,
            "total": scores,
        }
    )


def test_a_scan_counts_for_each_lesion_it_shows():
    assert (of_lesion(table(), "epidural")["label"] == "1").sum() == 6
    assert (of_lesion(table(), "epidural")["label"] == "0").sum() == 20


def test_other_groups_stay_out_of_the_auc():
    rows = table()
    before = summarise(rows, {})["auc"]["all"]
    extra = rows.head(3).assign(group="low_quality", total=99.0)
    assert summarise(pd.concat([rows, extra]), {})["auc"]["all"] == before
    assert before["n_normal"] == 20
    assert set(summarise(rows, {"encoder_only": rows})["auc"]) == {"all", "a", "b", "encoder_only"}


def test_a_perfect_auc_of_few_scans_is_not_certain():
    few = auc(np.array([0, 0, 0, 1, 1, 1]), np.arange(6.0))
    many = auc(np.r_[np.zeros(100, int), np.ones(100, int)], np.arange(200.0))
    assert few.value == few.high == many.value == 1
    assert few.low < 0.5 < 0.95 < many.low


def test_one_abnormal_scan_gives_a_wide_interval():
    found = auc(np.array([0] * 20 + [1]), np.r_[np.arange(20.0), 15.5])
    assert found.low < 0.5
    assert found.high > 0.9


def test_youden_of_a_useless_score_is_a_number():
    assert np.isfinite(youden_oracle(np.array([0, 1]), np.array([1.0, 0.0]))["threshold"])
