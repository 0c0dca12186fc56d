"""The paper's figures, from tables of scores and prepared volumes. Each function returns a matplotlib Figure."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from anomaly3d.evaluation.metrics import LESIONS, both_classes, labels_and_scores, of_lesion, ranked
from anomaly3d.evaluation.statistics import auc, average_precision

# Okabe and Ito 2008: told apart by the colour-blind, and in print by their lightness
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GROUPS = ("normal", "tbi", "postoperative", "low_quality")
RESIDUAL_LIMIT = 0.6  # of the colour scale, in units of [-1, 1]


def new_axes(width: float = 4.6, height: float = 5.2) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, constrained layout, no box on top and right."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def roc_figure(curves: dict[str, pd.DataFrame]) -> Figure:
    """Fig. 4: one ROC curve a table, its AUC, interval and n in the legend."""
    figure, axes = new_axes()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, label="chance")
    styles = [(colour, line) for line in ("-", "--") for colour in COLOURS]
    for (colour, line), (name, table) in zip(styles, curves.items(), strict=False):
        rows = ranked(table)
        if not both_classes(rows):
            continue
        labels, scores = labels_and_scores(rows)
        false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
        estimate = auc(labels, scores)
        label = (
            f"{name}: {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], "
            f"{estimate.n_normal} + {estimate.n_abnormal}"
        )
        axes.plot(false_rate, true_rate, line, color=colour, linewidth=1.6, label=label)
    axes.set(xlabel="False-positive rate", ylabel="True-positive rate", xlim=(-0.01, 1), ylim=(0, 1.01))
    axes.set_aspect("equal")
    figure.legend(
        fontsize=7,
        frameon=False,
        loc="outside lower center",
        title="AUC [95 % interval], normal + abnormal",
        title_fontsize=7,
    )
    return figure


def lesion_figure(table: pd.DataFrame) -> Figure:
    """Fig. 5: precision against recall for each lesion type, against all normals; the AP of chance as dotted lines."""
    figure, axes = new_axes()
    table = ranked(table)
    for colour, lesion in zip(COLOURS, LESIONS, strict=False):
        rows = of_lesion(table, lesion)
        if not both_classes(rows):
            continue
        labels, scores = labels_and_scores(rows)
        precision, recall, _ = precision_recall_curve(labels, scores)
        estimate = average_precision(labels, scores)
        label = f"{lesion}: {estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}], n = {estimate.n_abnormal}"
        axes.step(recall, precision, where="post", color=colour, linewidth=1.6, label=label)
        axes.axhline(labels.mean(), color=colour, linewidth=0.8, linestyle=":")
    axes.set(xlabel="Recall", ylabel="Precision", xlim=(0, 1.01), ylim=(0, 1.02))
    figure.legend(
        fontsize=7,
        frameon=False,
        loc="outside lower center",
        title="AP [95 % interval]; dotted: chance",
        title_fontsize=7,
    )
    return figure


def group_figure(table: pd.DataFrame, seed: int = 0) -> Figure:
    """Fig. 7: the logarithm of the score of every scan, by group and cohort, with each median."""
    figure, axes = new_axes(5.2, 3.4)
    rng = np.random.default_rng(seed)
    places: list[str] = []
    for colour, group in zip(COLOURS, GROUPS, strict=False):
        for cohort, rows in table[table["group"] == group].groupby("cohort"):
            values = np.log10(rows["total"].to_numpy(float).clip(1e-12))
            x = len(places)
            axes.scatter(x + rng.uniform(-0.15, 0.15, len(values)), values, s=12, color=colour, alpha=0.7, linewidths=0)
            axes.plot([x - 0.25, x + 0.25], [np.median(values)] * 2, color="black", linewidth=1.5)
            places.append(f"{group}\n{cohort}\nn = {len(rows)}")
    axes.set_xticks(range(len(places)), places, fontsize=8)
    axes.set(ylabel="log10 anomaly score", xlim=(-0.6, len(places) - 0.4))
    return figure


@dataclass(frozen=True)
class Case:
    """A scan to show: volumes ``(X, Y, Z)`` in [-1, 1] on one RAS grid, ``lesion`` 0 or 1 or None."""

    title: str
    image: np.ndarray
    reconstruction: np.ndarray
    lesion: np.ndarray | None

    def centre(self) -> tuple[int, int, int]:
        """Where to cut: the lesion's largest slices, else the middle."""
        if self.lesion is None or not self.lesion.any():
            nx, ny, nz = self.image.shape
            return nx // 2, ny // 2, nz // 2
        x, y, z = (int(self.lesion.sum(axis=tuple(b for b in range(3) if b != a)).argmax()) for a in range(3))
        return x, y, z


def planes(volume: np.ndarray, centre: tuple[int, int, int]) -> np.ndarray:
    """Axial, coronal and sagittal slices through ``centre``, upright, patient's right on the left, side by side."""
    x, y, z = centre
    cuts = [volume[::-1, :, z], volume[::-1, y], volume[x]]
    return np.concatenate([np.flipud(cut.T) for cut in cuts], axis=1)


def case_figure(cases: Sequence[Case]) -> Figure:
    """Fig. 6: input with the true lesion's outline, reconstruction, signed residual x - G(E(x)); three planes each."""
    figure, grid = plt.subplots(
        len(cases), 3, figsize=(11, 1.02 * len(cases) + 0.4), layout="constrained", squeeze=False
    )
    for row, case in zip(grid, cases, strict=True):
        centre = case.centre()
        image, reconstruction = planes(case.image, centre), planes(case.reconstruction, centre)
        row[0].imshow(image, cmap="gray", vmin=-1, vmax=1)
        if case.lesion is not None and case.lesion.any():
            row[0].contour(planes(case.lesion, centre), [0.5], colors=COLOURS[1], linewidths=0.8)
        row[1].imshow(reconstruction, cmap="gray", vmin=-1, vmax=1)
        residual = row[2].imshow(image - reconstruction, cmap="RdBu_r", vmin=-RESIDUAL_LIMIT, vmax=RESIDUAL_LIMIT)
        row[0].set_ylabel(case.title, fontsize=7, rotation=0, ha="right", va="center")
        for axes in row:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, title in zip(
        grid[0], ("Input x, true lesion outlined", "Reconstruction G(E(x))", "x - G(E(x))"), strict=True
    ):
        axes.set_title(title, fontsize=9)
    figure.colorbar(residual, ax=grid[:, 2], shrink=0.6, label="brighter than healthy → red")
    return figure
