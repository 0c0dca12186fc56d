import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly3d.evaluation.metrics import of_lesion, summarise
from anomaly3d.statistics.auc import (
    Difference,
    Estimate,
    auc,
    auc_covariance,
    average_precision,
    bootstrap_auc,
    bootstrap_difference,
    compare_auc,
    drawn_auc,
    holm,
    independent_trials,
    share,
    wilson,
)
from anomaly3d.statistics.bootstrap import DRAWS, subject_weights, weighted_auc


def study(n=40, m=30, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return np.r_[np.zeros(n, int), np.ones(m, int)], np.r_[rng.normal(0, 1, n), rng.normal(shift, 1, m)]


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


def test_interval_of_average_precision_covers():
    truth = 0.7530  # of infinitely many such scans at equal numbers, by quadrature
    covered = []
    for seed in range(400):
        estimate = average_precision(*study(50, 50, seed=seed))
        covered.append(estimate.low <= truth <= estimate.high)
    assert 0.91 <= np.mean(covered) <= 0.98


def test_an_auc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="normal and abnormal"):
        auc(np.ones(3, int), np.arange(3.0))


def table():
    labels, scores = study(20, 12)
    lesions = [""] * 20 + ["epidural", "subdural;epidural", "subdural", "intraparenchymal"] * 3
    return pd.DataFrame(
        {
            "scan_id": [str(i) for i in range(32)],
            "subject_id": [str(i) for i in range(32)],
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
    before = summarise(rows, {})["results"]["all"]["auc"]
    extra = rows.head(3).assign(group="low_quality", total=99.0)
    assert summarise(pd.concat([rows, extra]), {})["results"]["all"]["auc"] == before
    assert before["n_normal"] == 20
    results = summarise(rows, {"vae/fit": rows})["results"]
    assert (set(results["cohort"]), set(results["other"])) == ({"a", "b"}, {"vae/fit"})


def test_a_perfect_auc_of_few_scans_is_not_certain():
    few = auc(np.array([0, 0, 0, 1, 1, 1]), np.arange(6.0))
    many = auc(np.r_[np.zeros(100, int), np.ones(100, int)], np.arange(200.0))
    assert few.value == few.high == many.value == 1
    assert few.low < 0.5 < 0.95 < many.low


def test_one_abnormal_scan_gives_a_wide_interval():
    found = auc(np.array([0] * 20 + [1]), np.r_[np.arange(20.0), 15.5])
    assert found.low < 0.5
    assert found.high > 0.9


def repeated(subjects=25, scans=3, shift=1.0, seed=0):
    """Subjects with several scans whose scores share most of their variation."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(2 * subjects), scans)
    labels = (owner >= subjects).astype(int)
    return labels, rng.normal(shift * labels) * 0.3 + rng.normal(size=2 * subjects)[owner] + shift * labels, owner


def test_scans_of_one_subject_are_not_several_subjects():
    labels, scores, owner = repeated()
    alone, together = auc(labels, scores), auc(labels, scores, owner)
    assert together.value == alone.value
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_obuchowskis_variance_agrees_with_its_definition_where_subjects_have_both_classes():
    rng = np.random.default_rng(1)
    owner = rng.integers(0, 9, 40)
    labels, scores = (rng.random(40) < 0.5).astype(int), np.round(rng.normal(size=40), 1)
    ill, well = scores[labels == 1], scores[labels == 0]
    wins = (ill[:, None] > well) + 0.5 * (ill[:, None] == well)
    value = wins.mean()
    x, y = np.zeros(9), np.zeros(9)
    for i in range(9):
        x[i] = (wins.mean(1) - value)[owner[labels == 1] == i].sum()
        y[i] = (wins.mean(0) - value)[owner[labels == 0] == i].sum()
    m, n = len(ill), len(well)
    with_ill, with_well = len(set(owner[labels == 1])), len(set(owner[labels == 0]))
    expected = with_ill / (with_ill - 1) * (x**2).sum() / m**2 + with_well / (with_well - 1) * (y**2).sum() / n**2
    expected += 2 * 9 / 8 * (x * y).sum() / (m * n)
    values, covariance = auc_covariance(labels, scores[:, None], owner)
    assert values[0] == pytest.approx(value)
    assert covariance[0, 0] == pytest.approx(expected)


def test_the_interval_over_subjects_covers_where_the_other_does_not():
    truth = stats.norm.cdf(1.3 / np.sqrt(2 * (0.09 + 1)))
    over_subjects, over_scans = [], []
    for seed in range(300):
        labels, scores, owner = repeated(seed=seed)
        for found, subjects in ((over_subjects, owner), (over_scans, None)):
            estimate = auc(labels, scores, subjects)
            found.append(estimate.low <= truth <= estimate.high)
    assert 0.91 <= np.mean(over_subjects) <= 0.98
    assert np.mean(over_scans) < 0.85


def test_a_paired_test_sees_what_two_intervals_do_not():
    labels, scores = study(80, 80)
    better = scores + 0.25 * labels
    difference = compare_auc(labels, better, scores)
    assert difference.value == pytest.approx(roc_auc_score(labels, better) - roc_auc_score(labels, scores))
    assert difference.p < 0.01
    assert auc(labels, scores).high > auc(labels, better).low
    bootstrap = bootstrap_difference(labels, better, scores)
    assert bootstrap.value == pytest.approx(difference.value)
    assert bootstrap.low == pytest.approx(difference.low, abs=0.02)
    assert bootstrap.p < 0.02


def test_a_paired_test_of_the_same_scores_finds_nothing():
    labels, scores = study()
    assert compare_auc(labels, scores, 3 * scores).p == 1
    assert bootstrap_difference(labels, scores, scores).p == 1


def test_the_paired_test_rejects_as_often_as_it_says():
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(60, int), np.ones(60, int)]
    p = []
    for _ in range(300):
        truth = rng.normal(labels * 1.0)
        p.append(compare_auc(labels, truth + rng.normal(size=120), truth + rng.normal(size=120)).p)
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


def test_seeds_widen_the_interval():
    labels, scores = study(200, 200)
    rng = np.random.default_rng(0)
    seeds = np.stack([scores + s * labels for s in rng.normal(0, 0.8, 6)])
    one, many = bootstrap_auc(labels, scores), bootstrap_auc(labels, seeds)
    assert many.value == pytest.approx(np.mean([roc_auc_score(labels, row) for row in seeds]))
    assert many.high - many.low > 1.3 * (one.high - one.low)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_a_class_of_one_scan_proves_nothing():
    labels = np.array([0, 1, 1, 1, 1])
    difference = compare_auc(labels, np.array([0.5, 1, 2, 3, 0.2]), np.array([0.1, 1, 2, 3, 4]))
    assert (difference.p, difference.low, difference.high) == (1, -1, 1)
    perfect = compare_auc(np.array([0, 0, 1, 1]), np.arange(4.0), np.zeros(4))
    assert perfect.p == 1
    estimate = average_precision(labels, np.array([0.5, 1, 2, 3, 0.2]))
    assert 0 <= estimate.low < estimate.value < estimate.high <= 1


def test_a_difference_of_aucs_lies_between_minus_one_and_one():
    labels = np.array([0, 0, 1, 1, 1])
    difference = compare_auc(labels, np.array([0.0, 1, 2, 3, 0.5]), np.array([3.0, 2, 1, 2.5, 0]))
    assert -1 <= difference.low < difference.value < difference.high == 1


def test_a_share_of_single_scans_has_wilsons_interval():
    hits = np.array([True, True, False, True])
    found = share(hits, np.arange(4))
    assert found == {"value": 0.75, "ci95": list(wilson(0.75, 4)), "n": 4}
    assert found["ci95"] == pytest.approx([0.300642, 0.954413], abs=1e-6)
    assert share(hits[:0], np.arange(0)) == {"value": None, "ci95": None, "n": 0}


def test_copies_of_a_scan_add_nothing_to_a_share():
    hits = np.array([True, True, False, True, False, False])
    copies = independent_trials(np.repeat(hits, 5), np.repeat(np.arange(6), 5))
    assert copies == pytest.approx(30 / (6 / 5 * 25 * 1.5 / 900 / (0.25 / 29)))  # the design effect by hand: 5.8
    assert independent_trials(np.ones(30, bool), np.repeat(np.arange(6), 5)) == 6
    assert independent_trials(np.array([True, False]), np.zeros(2)) == 1


def test_opposite_scans_of_one_subject_do_not_count_for_more():
    assert independent_trials(np.tile([True, False], 8), np.repeat(np.arange(8), 2)) == 16


def test_the_schema_of_metrics_json():
    assert Estimate(0.7, 0.6, 0.8, 12, 5).as_json() == {
        "value": 0.7,
        "ci95": [0.6, 0.8],
        "n_normal": 12,
        "n_abnormal": 5,
    }
    assert Difference(0.1, -0.2, 0.3, 0.4).as_json() == {"value": 0.1, "ci95": [-0.2, 0.3], "p": 0.4}


@pytest.mark.parametrize("estimate", [auc, average_precision, bootstrap_auc])
def test_an_estimate_counts_its_scans(estimate):
    found = estimate(*study(7, 4))
    assert (found.n_normal, found.n_abnormal) == (7, 4)


def test_the_bootstraps_interval_is_the_middle_of_its_draws():
    labels, scores, owner = repeated(8)
    draws = weighted_auc(labels, scores, subject_weights(labels, owner, np.random.default_rng(0)))
    found = bootstrap_auc(labels, scores, owner)
    assert (found.low, found.high) == pytest.approx(np.percentile(draws, [2.5, 97.5]))
    assert bootstrap_auc(labels, scores, owner) == found
    other = np.random.default_rng(9).normal(size=len(labels))
    weights = subject_weights(labels, owner, np.random.default_rng(0))
    gaps = weighted_auc(labels, scores, weights) - weighted_auc(labels, other, weights)
    gap = bootstrap_difference(labels, scores, other, owner)
    assert (gap.low, gap.high) == pytest.approx(np.percentile(gaps, [2.5, 97.5]))
    assert gap.p == pytest.approx(2 * np.mean(gaps <= 0))
    assert bootstrap_difference(labels, labels * 1.0, -labels * 1.0).p == 1 / DRAWS  # none of the draws says otherwise


def test_draws_that_cannot_differ_are_no_certainty():
    """A class of one subject, also of one scanned often; and a perfect AUC."""
    rng = np.random.default_rng(1)
    for labels, subjects in (
        (np.repeat([0, 1], [1, 12]), np.arange(13)),
        (np.repeat([0, 1], [4, 12]), np.r_[np.zeros(4), np.arange(1, 13)]),
    ):
        scores, other = labels + 0.1 * rng.normal(size=len(labels)), rng.normal(size=len(labels))
        gap = bootstrap_difference(labels, scores, other, subjects)
        assert (gap.low, gap.high, gap.p) == (-1, 1, 1)
        assert gap.value == pytest.approx(compare_auc(labels, scores, other, subjects).value)
        found = bootstrap_auc(labels, scores, subjects)
        assert (found.low, found.high) == pytest.approx(wilson(found.value, 1))
    labels = np.repeat([0, 1], 12)
    perfect = bootstrap_auc(labels, labels * 1.0)
    assert (perfect.value, perfect.low, perfect.high) == pytest.approx((1, *wilson(1, 12)))
    assert perfect.low < 0.8


@pytest.mark.parametrize(("n", "least"), [(2, 1 / 3), (20, 1 / DRAWS)])
def test_perfect_scores_are_no_certainty(n, least):
    labels = np.repeat([0, 1], n)
    perfect, other = labels * 1.0, labels + 0.1 * np.arange(2 * n) / n
    for scores, value in ((np.zeros(2 * n), 0.5), (-perfect, 1.0), (other, 0.0)):
        by_covariance, gap = compare_auc(labels, perfect, scores), bootstrap_difference(labels, perfect, scores)
        assert (by_covariance.low, by_covariance.high, by_covariance.p) == (-1, 1, 1)
        assert gap.value == value
        assert gap.low < value - 0.1
        assert gap.high == 1 or gap.high > value + 0.1
        assert gap.p == (1 if scores is other else pytest.approx(least))
    for gap in (compare_auc(labels, perfect, 3 * perfect), bootstrap_difference(labels, perfect, 3 * perfect)):
        assert (gap.value, gap.low, gap.high, gap.p) == (0, 0, 0, 1)  # the same scores do not differ


def test_draws_without_a_class_do_not_count():
    """Of twelve ill subjects two also have a normal scan: a tenth of the draws has no normal scan."""
    rng = np.random.default_rng(0)
    labels, subjects = np.r_[np.ones(12, int), 0, 0], np.r_[np.arange(12), 0, 1]
    scores, other = labels + rng.normal(size=14), rng.normal(size=14)
    weights = subject_weights(labels, subjects, again := np.random.default_rng(0))
    drawn, others = (drawn_auc(labels, table[None], weights, again)[1] for table in (scores, other))
    gaps = drawn - others
    assert 0.02 < np.isnan(gaps).mean() < 0.2
    gaps = gaps[np.isfinite(gaps)]
    found = bootstrap_difference(labels, scores, other, subjects)
    assert found.p == pytest.approx(2 * min(np.mean(gaps <= 0), np.mean(gaps >= 0)))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(gaps, [2.5, 97.5])))


def test_each_draw_takes_one_of_the_seeds():
    """Of a perfect seed and one that is always wrong, a draw takes one twice or both."""
    labels = np.array([0, 0, 1, 1])
    rng = np.random.default_rng(0)
    weights = subject_weights(labels, None, rng, 1000)
    value, draws = drawn_auc(labels, np.stack([labels * 1.0, -labels * 1.0]), weights, rng)
    assert value == 0.5
    assert draws.shape == (1000,)
    assert set(draws) == {0.0, 0.5, 1.0}
    assert np.mean(draws == 0.5) == pytest.approx(0.5, abs=0.06)


def test_the_paired_test_is_that_of_the_covariance_over_subjects():
    labels, scores, owner = repeated(12)
    others = scores + np.random.default_rng(5).normal(size=len(labels))
    values, covariance = auc_covariance(labels, np.stack([scores, others], 1), owner)
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    found = compare_auc(labels, scores, others, owner)
    assert found.value == pytest.approx(values[0] - values[1])
    assert (found.low, found.high) == pytest.approx((found.value - 1.959964 * spread, found.value + 1.959964 * spread))
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.value) / spread))


def test_the_interval_of_average_precision_is_the_jackknifes_over_subjects():
    labels, scores, owner = repeated(6)
    value, spread = average_precision_score(labels, scores), 0.0
    for members in (range(6), range(6, 12)):
        left = [average_precision_score(labels[owner != i], scores[owner != i]) for i in members]
        spread += 5 / 6 * ((left - np.mean(left)) ** 2).sum()
    half = stats.t.ppf(0.975, 5) * np.sqrt(spread) / (value * (1 - value))
    logit = np.log(value / (1 - value))
    found = average_precision(labels, scores, owner)
    assert (found.low, found.high) == pytest.approx(1 / (1 + np.exp([half - logit, -half - logit])))


def test_wilsons_interval_stays_within_a_share():
    assert wilson(1.0, 3)[1] == 1
    assert wilson(0.0, 3)[0] == 0


def test_a_perfect_auc_counts_subjects_not_scans():
    labels, subjects = np.repeat([0, 1], 40), np.repeat(np.arange(4), 20)
    for measure in (auc, average_precision):
        many, few = measure(labels, labels * 1.0, subjects), measure(labels[::20], labels[::20] * 1.0)
        assert (many.low, many.high) == (few.low, few.high)
