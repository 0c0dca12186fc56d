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
    volume_figure,
)
from anomaly3d.scoring.calibration import Calibration


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
    assert [t.split(":")[0] for t in texts(figure)] == ["all cohorts", "x", "y", "this detector, A(x)", "mirror"]
    assert len(left.collections) == 3
    assert "0.50" in texts(figure)[-1]
    assert len(right.collections) == 0
    plt.close(figure)


def test_figures_show_the_score_that_they_are_asked_for(table):
    told = table.assign(peak=table["label"].astype(float) + 1)
    roc = roc_figure(told, {}, "peak")
    legend = texts(roc)
    assert [t.split(":")[0] for t in legend[-2:]] == ["this detector, peak", "this detector, A(x)"]
    assert all(": 1.00 [" in t for t in legend[:-1])
    assert ": 1.00 [" not in legend[-1]
    lesions = lesion_figure(told, "peak").legends[0]
    assert all(": 1.00 [" in t.get_text() for t in lesions.get_texts())
    assert lesions.get_title().get_text().startswith("peak, AP")
    (groups,) = group_figure(told, "peak").axes
    heights = {round(float(y), 3) for drawn in groups.collections for y in drawn.get_offsets()[:, 1]}
    assert heights == {0, 0.301}
    plt.close("all")


def test_recall_against_volume_counts_every_scan_once(table, calibration):
    figure = volume_figure(table, calibration)
    (axes,) = figure.axes
    assert sum(int(t.get_text().split("=")[1]) for t in axes.texts) == 18
    plt.close(figure)


def test_the_promise_is_drawn_for_each_site(table, calibration):
    figure = conformal_figure(table, calibration)
    assert [t.split(",")[0] for t in texts(figure)] == ["as promised", "site A", "site B"]
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
