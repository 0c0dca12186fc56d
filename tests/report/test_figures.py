import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from anomaly3d.report.figures import (
    conformal_figure,
    group_figure,
    lesion_figure,
    roc_band,
    roc_figure,
    training_figure,
    volume_figure,
)
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.statistics.auc import auc, share


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    labels = np.r_[np.zeros(30, int), np.ones(18, int)]
    return pd.DataFrame(
        {
            "scan_id": [str(i) for i in range(48)],
            "subject_id": [str(i) for i in range(48)],
            "cohort": ["x", "y"] * 24,
            "site": ["A", "B"] * 24,
            "label": labels.astype(str),
            "group": np.where(labels == 1, "tbi", "normal"),
            "lesions": [""] * 30 + ["epidural", "subdural", "subdural;contusion"] * 6,
            "lesion_ml": [""] * 30 + [f"{v:.2f}" for v in np.geomspace(0.6, 120, 18)],
            "total": rng.normal(labels) + 3,
        }
    )


@pytest.fixture
def calibration():
    return Calibration("own", "total", 0.1, np.random.default_rng(1).normal(3, 1, 40).tolist(), 0.01, {})


def test_the_band_holds_the_curve_and_narrows_with_more_scans(table):
    rng = np.random.default_rng(2)
    grid = np.linspace(0, 1, 21)
    widths = []
    for count in (40, 400):
        labels = np.r_[np.zeros(count, int), np.ones(count, int)]
        scores = rng.normal(1.0 * labels)
        low, high = roc_band(labels, scores, np.arange(2 * count), grid)
        inside = np.array([(scores[labels == 1] > np.quantile(scores[labels == 0], 1 - f)).mean() for f in grid])
        assert ((low - 0.03 <= inside) & (inside <= high + 0.03)).all()
        assert (np.diff(low) >= -1e-9).all()
        widths.append((high - low).mean())
    assert widths[1] < 0.5 * widths[0]


def texts(figure):
    return [t.get_text() for axes in figure.axes if axes.get_legend() for t in axes.get_legend().get_texts()]


def test_roc_shows_cohorts_with_bands_and_the_others(table):
    figure = roc_figure(table, {"mirror": table.assign(total=1.0)})
    left, right = figure.axes
    assert [t.split(":")[0] for t in texts(figure)] == [
        "all cohorts",
        "x",
        "y",
        "this detector, A(x)",
        "mirror, own score",
    ]
    assert len(left.collections) == 3
    assert "0.50" in texts(figure)[-1]
    assert len(right.collections) == 0
    plt.close(figure)


def test_figures_show_the_score_that_they_are_asked_for(table):
    told = table.assign(peak=table["label"].astype(float) + 1)
    roc = roc_figure(told, {}, "peak")
    layered = told.assign(layered=told["peak"], layered_name="clustered")
    beside = texts(roc_figure(told, {"mirror": layered, "pca": told}, "peak"))[-2:]
    assert [t.split(":")[0] for t in beside] == ["mirror, clustered", "pca, own score"]
    assert [": 1.00 [" in t for t in beside] == [True, False]
    legend = texts(roc)
    assert [t.split(":")[0] for t in legend[-2:]] == ["this detector, peak", "this detector, A(x)"]
    assert all(": 1.00 [" in t for t in legend[:-1])
    assert ": 1.00 [" not in legend[-1]
    lesions = lesion_figure(told, "peak").legends[0]
    assert all(": 1.00 [" in t.get_text() for t in lesions.get_texts())
    assert lesions.get_title().get_text().startswith("peak, AP")
    (groups,) = group_figure(told, "peak").axes
    heights = {round(float(y), 3) for drawn in groups.collections for y in drawn.get_offsets()[:, 1]}
    assert heights == {1, 2}
    assert groups.get_yscale() == "log"
    plt.close("all")


def test_recall_against_volume_counts_every_scan_once(table, calibration):
    figure = volume_figure(table, calibration)
    (axes,) = figure.axes
    assert sum(int(t.get_text().split("=")[1]) for t in axes.texts) == 18
    plt.close(figure)


def test_the_promise_is_drawn_for_each_site(table, calibration):
    figure = conformal_figure(table, calibration)
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert [t.split(",")[0] for t in labels] == ["at most promised", "site A", "site B"]
    plt.close(figure)


def test_lesions_and_groups_are_all_there(table):
    figure = lesion_figure(table)
    labels = [t.get_text().split(":")[0] for t in figure.legends[0].get_texts()]
    assert labels == ["epidural", "subdural", "contusion"]
    plt.close(figure)
    figure = group_figure(table)
    assert [t.get_text().split("\n")[:2] for t in figure.axes[0].get_xticklabels()] == [
        ["normal", "x"],
        ["normal", "y"],
        ["tbi", "x"],
        ["tbi", "y"],
    ]
    plt.close(figure)


def test_groups_stand_apart_by_kind_each_with_its_auc_against_healthy_scans(table):
    """After surgery and set aside: craniectomy above all healthy scans, motion among them, in the same way at both
    cohorts; medians and points on a logarithmic axis."""
    well = table[table["label"] == "0"]
    more = (
        well.head(8)
        .reset_index(drop=True)
        .assign(
            label="1", group=["postoperative"] * 4 + ["low_quality"] * 4, lesions=["craniectomy"] * 4 + ["motion"] * 4
        )
    )
    more["subject_id"] = [f"s{i}" for i in range(8)]
    more["total"] = [100.0, 1000, 100, 1000, *well["total"].head(4)]
    (axes,) = group_figure(pd.concat([well, more])).axes
    named = [t.get_text().split("\n")[0] for t in axes.get_xticklabels()]
    assert named == ["normal", "normal", "craniectomy", "craniectomy", "motion", "motion"]
    written = [t.get_text() for t in axes.texts]
    assert [t.split("\n")[0] for t in written[:2]] == ["1.00", "1.00"]
    motion = more[(more["lesions"] == "motion") & (more["cohort"] == "x")]
    every = np.r_[well["total"], motion["total"]]
    expected = auc(np.r_[np.zeros(30, int), np.ones(2, int)], every)
    assert written[2] == f"{expected.value:.2f}\n[{expected.low:.2f}, {expected.high:.2f}]"
    assert axes.get_yscale() == "log"
    medians = [line.get_ydata()[0] for line in axes.lines]
    assert medians[2:4] == [100, 1000]
    plt.close("all")


@pytest.fixture
def few():
    """Scores 5 and 3 of abnormal, 4, 2 and 1 of normal scans; one after surgery, which no curve is about."""
    return pd.DataFrame(
        {
            "scan_id": list("abcdef"),
            "subject_id": list("abcdef"),
            "cohort": "x",
            "label": list("100101"),
            "group": ["tbi", "normal", "normal", "tbi", "normal", "postoperative"],
            "lesions": ["epidural", "", "", "subdural", "", "craniectomy"],
            "total": [5.0, 4.0, 2.0, 3.0, 1.0, 100.0],
        }
    )


def test_the_points_of_a_roc_curve(few):
    figure = roc_figure(few, {"upside down": few.assign(total=-few["total"])})
    expected = [[0, 0], [0, 1 / 2], [1 / 3, 1 / 2], [1 / 3, 1], [2 / 3, 1], [1, 1]]
    for line in (figure.axes[0].lines[0], figure.axes[1].lines[0]):
        np.testing.assert_allclose(line.get_xydata(), expected)
    assert all("0.83 [" in text and text.endswith("3 + 2") for text in texts(figure)[:2])
    other = figure.axes[1].lines[1].get_xydata()
    np.testing.assert_allclose(other, 1 - np.array(expected[::-1]))
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() >= 0
    assert band[:, 1].max() == 1
    plt.close(figure)


def test_the_points_of_precision_against_recall(few):
    figure = lesion_figure(few)
    epidural, chance, subdural, _ = figure.axes[0].lines
    np.testing.assert_allclose(subdural.get_xydata(), [[1, 1 / 4], [1, 1 / 3], [1, 1 / 2], [0, 0], [0, 1]])
    np.testing.assert_allclose(epidural.get_xydata()[-2:], [[1, 1], [0, 1]])
    assert subdural.get_drawstyle() == "steps-post"
    assert list(chance.get_ydata()) == [1 / 4, 1 / 4]
    assert [t.get_text().split("[")[0] for t in figure.legends[0].get_texts()] == ["epidural: 1.00 ", "subdural: 0.50 "]
    plt.close(figure)


def test_the_groups_scores_are_drawn_as_their_logarithms(few):
    scores = [1000.0, 10.0, 0.01, 10.0**0.5, 0.0, 1e5]
    figure = group_figure(few.assign(total=scores, cohort=list("xxyxyx")))
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        *("normal\nx\nn = 1", "normal\ny\nn = 2", "tbi\nx\nn = 2", "craniectomy\nx\nn = 1"),
    ]
    expected = [[1], [-2, np.log10(0.005)], [3, 0.5], [5]]  # a score of nothing lies below all others
    for place, (drawn, values) in enumerate(zip(axes.collections, expected, strict=True)):
        offsets = drawn.get_offsets()
        np.testing.assert_allclose(np.log10(offsets[:, 1].astype(float)), values)
        assert (np.abs(offsets[:, 0] - place) <= 0.15).all()
        middle = axes.lines[place]
        np.testing.assert_allclose(middle.get_ydata(), np.median(10.0 ** np.array(values)))
        np.testing.assert_allclose(middle.get_xdata(), [place - 0.25, place + 0.25])
    assert axes.get_yscale() == "log"
    assert [t.get_position()[1] for t in axes.texts if t.get_text() == "zeros"] == [0.005]
    assert axes.get_ylabel() == "A(x)"
    plt.close(figure)


def test_scores_below_zero_are_drawn_as_they_are(few):
    (axes,) = group_figure(few.assign(total=[-3.0, -2.0, -1.0, 0.5, 0.0, 4.0])).axes
    drawn = np.concatenate([np.asarray(points.get_offsets())[:, 1] for points in axes.collections])
    assert axes.get_yscale() == "linear"
    assert sorted(drawn) == [-3, -2, -1, 0, 0.5, 4]


def test_the_bands_of_recall_against_volume():
    """The threshold lies above 18 of the calibration scores 1 to 19."""
    calibration = Calibration("own", "total", 0.1, list(map(float, range(1, 20))), 0.01, {})
    ml, scores = [0.05, 1.99, 2.0, 4.0, 60.0], [19.0, 18.0, 20.0, 30.0, 1.0]
    table = pd.DataFrame({"total": [50.0, *scores], "lesion_ml": ["", *map(str, ml)], "label": list("011111")})
    table = table.assign(subject_id=list("abcdef"), group=["normal"] + ["tbi"] * 5)
    figure = volume_figure(table, calibration)
    (axes,) = figure.axes
    bands = [([0.1, 2], [True, False]), ([2, 5], [True, True]), ([50, 60], [False])]
    *areas, ticks = axes.collections
    for (ends, found), line, area, text in zip(bands, axes.lines, areas, axes.texts, strict=True):
        np.testing.assert_allclose(line.get_xydata(), [[end, np.mean(found)] for end in ends])
        corners = area.get_paths()[0].vertices
        limits = share(np.array(found), np.arange(len(found)))["ci95"]
        np.testing.assert_allclose([corners.min(0), corners.max(0)], np.transpose([ends, limits]))
        assert text.get_text() == f"n = {len(found)}"
    np.testing.assert_allclose(ticks.get_offsets()[:, 0], [0.1, *ml[1:]])
    assert (ticks.get_offsets()[:, 1] > 0.5).tolist() == [True, False, True, True, False]
    assert axes.get_xscale() == "log"
    plt.close(figure)


def test_the_steps_of_the_promise():
    calibration = Calibration("own", "total", 0.1, [1.0, 2, 3, 4], 0.01, {})
    table = pd.DataFrame({"total": [0.0, 3.5, 9.0], "label": list("001"), "group": ["normal", "normal", "tbi"]})
    figure = conformal_figure(table.assign(site="A"), calibration)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_xydata(), [[0, 0], [2 / 5, 1 / 2], [1, 1], [1, 1]])
    plt.close(figure)


def test_the_numbers_of_training_are_drawn_as_they_are():
    numbers = {"encoder": pd.DataFrame({"step": [2, 4], "val_loss": [0.5, 0.25], "loss": [0.4, 0.1]})}
    figure = training_figure(numbers)
    (axes,) = figure.axes
    validation, training = (line.get_xydata().tolist() for line in axes.lines)
    assert validation == [[2, 0.5], [4, 0.25]]
    assert training == [[2, 0.4], [4, 0.1]]
    assert axes.get_title() == "encoder: loss"
    plt.close(figure)
