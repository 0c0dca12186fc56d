"""The paper's figures, from tables of scores and prepared volumes. Each function returns a matplotlib Figure."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullFormatter
from sklearn.metrics import precision_recall_curve, roc_curve

from anomaly3d.evaluation.metrics import (
    LAYERED,
    LAYERED_NAME,
    ap_of,
    auc_of,
    both_classes,
    kinds_in,
    labels_and_scores,
    of_lesion,
    ranked,
    subjects_of,
)
from anomaly3d.evaluation.thresholds import VOLUMES, share_of
from anomaly3d.scans.volume import side_by_side, three_planes
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.statistics.auc import Estimate, auc
from anomaly3d.statistics.bootstrap import class_weights_by_score, subject_weights

# Okabe and Ito 2008: told apart by the colour-blind, and in print by their lightness
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = [(colour, line) for line in ("-", "--", ":") for colour in COLOURS[:-1]]  # of many curves
GROUPS = ("normal", "tbi", "other", "postoperative", "low_quality")
BY_KIND = ("other", "postoperative", "low_quality")  # groups whose kinds stand apart
BAND_DRAWS = 500  # of the bootstrap behind a ROC curve's band
RESIDUAL_LIMIT = 0.6  # of the colour scale, in units of [-1, 1]
RED, BLUE = "#CC2419", "#1A59CC"  # brighter and darker than healthy, in figures, thumbnails and viewer
RESIDUAL_COLOURS = LinearSegmentedColormap.from_list("residual", [BLUE, "white", RED])
plt.rcParams["svg.hashsalt"] = "anomaly3d"  # the same figure gives the same bytes


def new_axes(width: float = 4.6, height: float = 5.2) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, constrained layout, no box on top and right."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def roc_band(labels: np.ndarray, scores: np.ndarray, subjects: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Lower and upper 95 % limit of the true-positive rate at each false-positive rate of ``grid``: ``(2, len(grid))``.

    Pointwise, from a bootstrap over subjects.
    """
    weights = subject_weights(labels, subjects, np.random.default_rng(0), BAND_DRAWS)
    ill, well = (w[:, ::-1] for w in class_weights_by_score(labels, scores, weights))
    rows = [
        np.interp(grid, np.r_[0, np.cumsum(n)] / n.sum(), np.r_[0, np.cumsum(p)] / p.sum())
        for p, n in zip(ill, well, strict=True)
    ]
    return np.percentile(rows, [2.5, 97.5], axis=0)


def draw_roc(axes: Axes, name: str, table: pd.DataFrame, score: str, band: bool, **style: Any) -> None:
    """The ROC curve of a column of a table, its AUC, interval and n in the legend."""
    rows = ranked(table)
    if not both_classes(rows):
        return
    labels, scores = labels_and_scores(rows, score)
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    estimate = auc_of(rows, score)
    text = (
        f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], {estimate.n_normal} + {estimate.n_abnormal}"
    )
    (line,) = axes.plot(false_rate, true_rate, label=f"{name}: {text}", **style)
    if band:
        grid = np.linspace(0, 1, 101)
        low, high = roc_band(labels, scores, subjects_of(rows), grid)
        axes.fill_between(grid, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def words_of(score: str) -> str:
    """A score for people."""
    return "A(x)" if score == "total" else score


def capital(text: str) -> str:
    """With a capital where a sentence begins."""
    return text[:1].upper() + text[1:]


def roc_figure(table: pd.DataFrame, others: dict[str, pd.DataFrame], score: str = "total") -> Figure:
    """Fig. 4: ROC curves of a score of this detector by cohort with their 95 % bands; and beside those of the others,
    each by the score that was chosen for it, this detector's by its own score as well."""
    cohorts = {str(name): rows for name, rows in table.groupby("cohort")}
    parts = {"all cohorts": table, **cohorts} if len(cohorts) > 1 else cohorts
    own = dict.fromkeys([score, "total"])
    lines = max(len(parts), len(others) + len(own))  # of the longer legend
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.8 + 0.15 * lines), layout="constrained")
    for (colour, line), (name, rows) in zip(LINES, parts.items(), strict=False):
        draw_roc(left, name, rows, score, True, color=colour, linestyle=line, linewidth=1.8)
    for line, name in zip(("-", "--"), own, strict=False):
        draw_roc(
            right, f"this detector, {words_of(name)}", table, name, False, color="black", linestyle=line, linewidth=2
        )
    for (colour, line), (name, rows) in zip(LINES, others.items(), strict=False):
        column = LAYERED if LAYERED in rows else "total"
        called = rows[LAYERED_NAME].iloc[0] if LAYERED in rows else column
        called = "own score" if called == "total" else called
        draw_roc(right, f"{name}, {called}", rows, column, False, color=colour, linestyle=line, linewidth=1.2)
    for axes, title in ((left, f"This detector, {words_of(score)}, by cohort"), (right, "Beside the others")):
        axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(
            xlabel="False-positive rate", ylabel="True-positive rate", xlim=(-0.01, 1), ylim=(0, 1.01), title=title
        )
        axes.set_aspect("equal")
        axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def lesion_figure(table: pd.DataFrame, score: str = "total") -> Figure:
    """Fig. 5: precision against recall for each lesion type, against all normals; the AP of chance as dotted lines."""
    figure, axes = new_axes()
    table = ranked(table)
    for (colour, line), lesion in zip(LINES, kinds_in(table), strict=False):
        rows = of_lesion(table, lesion)
        if not both_classes(rows):
            continue
        labels, scores = labels_and_scores(rows, score)
        precision, recall, _ = precision_recall_curve(labels, scores)
        estimate = ap_of(rows, score)
        interval = f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"
        label = f"{lesion.replace('_', ' ')}: {interval}, n = {estimate.n_abnormal}"
        axes.step(recall, precision, where="post", color=colour, linestyle=line, linewidth=1.6, label=label)
        axes.axhline(labels.mean(), color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.01), ylim=(0, 1.02))
    figure.legend(
        fontsize=7,
        frameon=False,
        loc="outside lower center",
        title=f"{words_of(score)}, AP [95 % interval]; dotted: chance",
        title_fontsize=7,
    )
    return figure


def training_figure(numbers: dict[str, pd.DataFrame]) -> Figure:
    """How each phase went: its validation numbers over the steps, beside each the same number in training.

    Args:
        numbers: ``training.csv`` by phase.
    """
    panels = [(phase, name) for phase, table in numbers.items() for name in map(str, table) if name.startswith("val_")]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.9 * columns, 2.2 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (phase, name) in zip(grid.flat, panels, strict=False):
        table = numbers[phase]
        axes.plot(table["step"], table[name], color=COLOURS[0], linewidth=1.5, label="validation")
        if (same := name.removeprefix("val_")) in table:
            axes.plot(table["step"], table[same], color="0.6", linewidth=1, label="training")
            axes.legend(fontsize=7, frameon=False)
        axes.set_title(f"{phase}: {same.replace('_', ' ')}", fontsize=9)
        axes.set_xlabel("steps", fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def group_figure(table: pd.DataFrame, score: str = "total", seed: int = 0) -> Figure:
    """Fig. 7: a score of every scan on a logarithmic axis, by group and cohort, what is beyond healthy and bleeding by
    its kind (craniectomy, motion ...), with each median; above it the AUC against the healthy scans, and its interval.
    """
    table = table.assign(kind=table["lesions"].where(table["group"].isin(BY_KIND), ""))
    parts = [
        (group, (str(kind) or group).replace("_", " "), str(cohort), rows)
        for group in GROUPS
        for (kind, cohort), rows in table[table["group"] == group].groupby(["kind", "cohort"])
    ]
    figure, axes = new_axes(max(5.2, 1.1 * len(parts)), 3.6)
    rng = np.random.default_rng(seed)
    healthy = table[table["group"] == "normal"]
    ticks, every = [], table[score].to_numpy(float)
    positive = every[every > 0]
    logarithmic = bool(len(positive)) and not (every < 0).any()
    lowest = positive.min() / 2 if logarithmic else -np.inf  # where a logarithmic axis has its zeros
    for x, (group, name, cohort, rows) in enumerate(parts):
        values = rows[score].to_numpy(float).clip(lowest)
        colour = COLOURS[GROUPS.index(group)]
        axes.scatter(x + rng.uniform(-0.15, 0.15, len(values)), values, s=12, color=colour, alpha=0.7, linewidths=0)
        axes.plot([x - 0.25, x + 0.25], [np.median(values)] * 2, color="black", linewidth=1.5)
        if group != "normal" and not healthy.empty:
            found = against(healthy, rows, score)
            text = f"{found.value:.2f}\n[{found.low:.2f}, {found.high:.2f}]"
            axes.text(x, 1.02, text, transform=axes.get_xaxis_transform(), ha="center", fontsize=7)
        ticks.append("\n".join([*textwrap.wrap(name, 14), *textwrap.wrap(cohort, 14)[:3], f"n = {len(rows)}"]))
    axes.set_xticks(range(len(ticks)), ticks, fontsize=8)
    axes.set(yscale="log" if logarithmic else "linear", ylabel=words_of(score), xlim=(-0.6, len(ticks) - 0.4))
    if logarithmic and (every == 0).any():
        axes.text(1.01, lowest, "zeros", transform=axes.get_yaxis_transform(), va="center", fontsize=7)
    whose = f"{len(healthy)} healthy scans of all cohorts"
    axes.set_title(f"AUC against {whose}", fontsize=8, loc="left", pad=26)
    return figure


def against(healthy: pd.DataFrame, rows: pd.DataFrame, score: str) -> Estimate:
    """How well a score tells some scans from healthy ones."""
    labels = np.r_[np.zeros(len(healthy), int), np.ones(len(rows), int)]
    both = pd.concat([healthy, rows])
    return auc(labels, both[score].to_numpy(float), both["subject_id"].to_numpy())


def volume_figure(table: pd.DataFrame, calibration: Calibration) -> Figure:
    """Recall at the locked threshold against lesion volume: scans as ticks, bands of volume with their intervals."""
    figure, axes = new_axes(5.2, 3.4)
    ill = ranked(table)
    ill = ill[(ill["label"] == "1") & (ill["lesion_ml"] != "")]
    ml = ill["lesion_ml"].astype(float).clip(lower=0.1)
    flagged = ill[calibration.score] >= calibration.threshold
    for low, high in pairwise(VOLUMES):
        inside = (ml >= low) & (ml < high)
        if not inside.any():
            continue
        found = share_of(ill[inside], flagged)
        ends = [max(low, 0.1), min(high, max(ml.max(), 10))]
        axes.fill_between(ends, found["ci95"][0], found["ci95"][1], color=COLOURS[0], alpha=0.2, linewidth=0)
        axes.plot(ends, [found["value"]] * 2, color=COLOURS[0], linewidth=2)
        axes.text(np.sqrt(ends[0] * ends[1]), found["value"] + 0.02, f"n = {found['n']}", ha="center", fontsize=7)
    rng = np.random.default_rng(0)
    axes.scatter(ml, np.where(flagged, 1.06, -0.06) + rng.uniform(-0.02, 0.02, len(ml)), s=8, color="0.4", linewidths=0)
    axes.set(xscale="log", xlabel="Lesion volume, ml", ylabel="Recall at the locked threshold", ylim=(-0.1, 1.1))
    axes.set_xlim(0.09, max(1.2 * ml.max(), 12))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    return figure


def conformal_figure(table: pd.DataFrame, calibration: Calibration) -> Figure:
    """Share of healthy test scans with a p-value at most alpha, by site: on the diagonal where the promise holds."""
    figure, axes = new_axes(4.6, 4.2)
    well = ranked(table)
    well = well[well["label"] == "0"]
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, label="at most promised")
    for (colour, line), (site, rows) in zip(LINES, well.groupby("site"), strict=False):
        p = np.sort(calibration.p_values(rows[calibration.score].to_numpy(float)))
        shares = np.arange(1, len(p) + 1) / len(p)
        label = textwrap.fill(f"site {site or 'unknown'!s}, n = {len(p)}", 40)
        axes.step(np.r_[0, p, 1], np.r_[0, shares, 1], where="post", color=colour, linestyle=line, label=label)
    axes.set(xlabel="alpha", ylabel="Healthy scans with p at most alpha", xlim=(0, 1), ylim=(0, 1.01))
    axes.set_aspect("equal")
    figure.legend(fontsize=8, frameon=False, loc="outside lower center")
    return figure


@dataclass(frozen=True)
class Case:
    """A scan to show: volumes ``(X, Y, Z)`` in [-1, 1] on one RAS grid, ``lesion`` 0 or 1 or None."""

    title: str
    image: np.ndarray
    reconstruction: np.ndarray
    lesion: np.ndarray | None
    spacing: np.ndarray  # mm

    def centre(self) -> tuple[int, int, int] | None:
        """Where to cut: the lesion's largest slices, else the middle."""
        if self.lesion is None or not self.lesion.any():
            return None
        x, y, z = (int(self.lesion.sum(axis=tuple(b for b in range(3) if b != a)).argmax()) for a in range(3))
        return x, y, z


def case_figure(cases: Sequence[Case], per_unit: float, unit: str) -> Figure:
    """Fig. 6, S1 to S3: input with the lesion outlined, reconstruction and residual of each case in three planes.

    Args:
        per_unit: ``unit`` that a difference of 1 is.
    """
    figure, grid = plt.subplots(
        len(cases), 3, figsize=(8.4, 1.05 * len(cases) + 0.7), layout="compressed", squeeze=False
    )
    for row, case in zip(grid, cases, strict=True):
        residual = draw_case(row, case, per_unit)
    outlined = any(case.lesion is not None and case.lesion.any() for case in cases)
    first = "Input x, true lesion outlined" if outlined else "Input x"
    for axes, title in zip(grid[0], (first, "Reconstruction x~", "x - x~"), strict=True):
        axes.set_title(title, fontsize=9)
    bar = figure.colorbar(residual, ax=grid, location="bottom", shrink=0.3, aspect=30, pad=0.01)
    bar.set_label(f"{unit}; red: brighter than healthy", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_case(row: np.ndarray, case: Case, per_unit: float) -> AxesImage:
    """A case into three axes; returns the picture of the residual."""
    centre = case.centre()
    image, reconstruction = (side_by_side(v, case.spacing, centre) for v in (case.image, case.reconstruction))
    residual = image - reconstruction
    row[0].imshow(image, cmap="gray", vmin=-1, vmax=1)
    if case.lesion is not None and case.lesion.any():
        row[0].contour(side_by_side(case.lesion, case.spacing, centre), [0.5], colors=COLOURS[1], linewidths=0.8)
    row[1].imshow(reconstruction, cmap="gray", vmin=-1, vmax=1)
    limit = RESIDUAL_LIMIT * per_unit
    drawn = row[2].imshow(residual * per_unit, cmap=RESIDUAL_COLOURS, vmin=-limit, vmax=limit)
    width = three_planes(case.image, case.spacing, centre)[0].shape[1]
    for text, column, side in (("R", 1, "left"), ("L", width - 2, "right")):
        row[0].text(column, 1, text, color="white", fontsize=6, ha=side, va="top")
    row[0].set_ylabel(case.title, fontsize=7, rotation=0, ha="right", va="center")
    for axes in row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return drawn
