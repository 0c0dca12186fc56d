"""Figures and page of an evaluated run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from anomaly3d.data import HeadCTDataModule
from anomaly3d.evaluation.calibration import Calibration
from anomaly3d.evaluation.figures import (
    Case,
    case_figure,
    conformal_figure,
    group_figure,
    lesion_figure,
    roc_figure,
    volume_figure,
)
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.evaluation.rescoring import load
from anomaly3d.files import written_whole
from anomaly3d.lineage import ORDER
from anomaly3d.report.page import Page, write_page
from anomaly3d.report.viewer import pictures

EXAMPLES = 2  # highest and lowest scores shown of each class


@dataclass(frozen=True)
class Context:
    """What a report is about: a run, its folder, that of its evaluation, its data and where it comes from.

    ``images``: whether scans may be in the page; None for phantoms only.
    """

    run: str
    folder: Path
    out: Path
    data: HeadCTDataModule
    lineage: dict[str, Any]
    images: bool | None

    def shows_scans(self) -> bool:
        """Whether scans are in the page."""
        phantom = self.lineage["settings"]["dataset"]["kind"] == "phantom"
        return phantom if self.images is None else self.images


def present(
    context: Context,
    table: pd.DataFrame,
    others: dict[str, pd.DataFrame],
    calibrations: list[Calibration],
    metrics: dict[str, Any],
) -> dict[str, Path]:
    """Write ``figures/`` and ``report.html``; returns the figures that the page shows, as files by name.

    Args:
        table: rescored test scans.
        others: tables of other detectors by name.
        calibrations: the first one's threshold is the page's.
    """
    locked = calibrations[0] if calibrations else None
    figures = draw(context, table, others, locked)
    flagged = table[locked.score] >= locked.threshold if locked else None
    thumbnails: dict[str, str] = {}
    volumes: dict[str, dict[str, Any]] = {}
    if context.shows_scans():
        rows = context.data.split("test").set_index("scan_id")
        none = pd.Series(False, index=table.index)
        thumbnails, volumes = pictures(table, none if flagged is None else flagged, rows, context.out)
    else:
        del figures["cases"]  # it lies beside the page
    low, high = context.lineage["settings"]["preprocessing"]["window"]
    page = Page(
        run=context.run,
        metrics=metrics,
        table=table,
        flagged=flagged,
        figures=figures,
        thumbnails=thumbnails,
        volumes=volumes,
        window=(low, high),
        alarms=read_alarms(context.folder)
        if context.out.parent == context.folder
        else [],  # the GAN's, not a control's
        lineage=context.lineage,
    )
    write_page(context.out / "report.html", page)
    return figures


def draw(
    context: Context, table: pd.DataFrame, others: dict[str, pd.DataFrame], locked: Calibration | None
) -> dict[str, Path]:
    """All figures as files, by name, in the order in which a reader wants them."""
    place = context.out / "figures"
    figures = {
        "roc": save(roc_figure(table, {n.replace("_", " "): t for n, t in others.items()}), place / "roc"),
        "lesions": save(lesion_figure(table), place / "lesions"),
        "cases": save(case_figure(choose_cases(table, context)), place / "cases", ".png"),
        "groups": save(group_figure(table), place / "groups"),
    }
    if locked:
        figures["volumes"] = save(volume_figure(table, locked), place / "volumes")
        figures["conformal"] = save(conformal_figure(table, locked), place / "conformal")
    return figures


def read_alarms(run: Path) -> list[dict[str, Any]]:
    """What the phases of a run raised, in their order."""
    found = []
    for phase in ORDER:
        file = run / phase / "health.json"
        if file.exists():
            found += [{**alarm, "phase": phase} for alarm in json.loads(file.read_text())["alarms"]]
    return found


def choose_cases(table: pd.DataFrame, context: Context) -> list[Case]:
    """The highest and the lowest scores of abnormal and of normal scans, which are the detector's hits and errors.

    Without such scans, of all there are.
    """
    cases = []
    scored = table if (labelled := ranked(table)).empty else labelled
    rows = context.data.table.set_index("scan_id")
    for label, name in (("1", "abnormal"), ("0", "normal"), ("", "unlabelled")):
        ordered = scored[scored["label"] == label].sort_values("total", ascending=False)
        picks = pd.concat([ordered.head(EXAMPLES), ordered.tail(EXAMPLES)]).drop_duplicates("scan_id")
        for row in picks.to_dict("records"):
            scan = rows.loc[row["scan_id"]]
            lesion = load(scan.lesion_mask) if scan.lesion_mask else None
            kind = row["lesions"].replace(";", ", ") or name
            cases.append(
                Case(
                    f"{kind}\nscore {row['total']:.3f}",
                    load(scan.image),
                    load(context.out / "reconstruction" / f"{row['scan_id']}.nii.gz"),
                    lesion,
                )
            )
    return cases


def save(figure: Figure, stem: Path, shown: str = ".svg") -> Path:
    """Write a figure as SVG and PNG; returns the file that the page shows."""
    figure.draw_without_rendering()  # a first pass: axes of equal scale take their size, and the second fits titles
    for suffix in (".svg", ".png"):
        with written_whole(stem.with_suffix(suffix)) as path:
            figure.savefig(path, dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)
    return stem.with_suffix(shown)
