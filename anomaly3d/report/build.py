"""Figures and page of an evaluated run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from anomaly3d.evaluation.judging import Evaluated
from anomaly3d.evaluation.metrics import both_classes, kinds_in, ranked
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.report.figures import (
    GROUPS,
    Case,
    case_figure,
    conformal_figure,
    group_figure,
    lesion_figure,
    roc_figure,
    training_figure,
    volume_figure,
    words_of,
)
from anomaly3d.report.page import P_VALUE, Page, View, set_aside_text, write_page
from anomaly3d.report.tables import auc_rows, title_of
from anomaly3d.report.viewer import DEVIATION_LIMIT, Shown, pictures
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.scans.nifti import spacing_of, voxels
from anomaly3d.scoring.anomaly_maps import ScanMaps, maps_of
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.scoring.inference import preprocessor_of
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import console, say
from anomaly3d.training.callbacks.numbers import FILE as TRAINING

EXAMPLES = 2  # highest and lowest scores shown of each class
CASES = "cases"  # the figure that shows scans
DEVIATION = 3.0  # healthy spreads, where no voxel threshold is locked


@dataclass(frozen=True)
class Report:
    """A written report: its page, and its figures as files by name."""

    page: Path
    figures: dict[str, Path]


def present(found: Evaluated, images: bool | None) -> Report:
    """Write ``figures/`` and ``report.html`` of an evaluation, and show the table in the terminal.

    Args:
        images: whether scans may be in the page; None: synthetic ones only.
    """
    setting = found.setting
    shows_scans = setting.synthetic if images is None else images
    figures = draw(found, setting.place / "figures")
    locked, table = found.learned.locked, found.table
    flagged = locked.flags(table[locked.score]) if locked else None
    thumbnails: dict[str, str] = {}
    volumes: dict[str, dict[str, Any]] = {}
    if shows_scans:
        thumbnails, volumes = pictures(table, found.learned.chosen, flagged, shown_scans(found))
    preprocessor = preprocessor_of(found.setting.focus)
    page = Page(
        run=setting.name,
        place=found.out.relative_to(setting.run).as_posix(),
        metrics=found.metrics,
        table=table.assign(**{P_VALUE: locked.p_values(table[locked.score].to_numpy(float))}) if locked else table,
        flagged=flagged,
        figures={name: file for name, file in figures.items() if shows_scans or name != CASES},
        thumbnails=thumbnails,
        volumes=volumes,
        view=view_of(preprocessor, locked),
        alarms=read_alarms(found),
        made=made_of(found),
    )
    path = setting.place / "report.html"
    write_page(path, page)
    show(found, path)
    return Report(path, figures)


def draw(found: Evaluated, place: Path) -> dict[str, Path]:
    """All figures as files, by name, in the order in which a reader wants them."""
    table, chosen, detectors = found.table, found.learned.chosen, found.metrics["detectors"]
    others = {title_of(detectors, label): other for label, other in found.others.items()}
    figures = {}
    if both_classes(ranked(table)):
        figures["roc"] = save(roc_figure(table, others, chosen), place / "roc")
        if kinds_in(ranked(table)):
            figures["lesions"] = save(lesion_figure(table, chosen), place / "lesions")
    if cases := choose_cases(found):
        preprocessor = preprocessor_of(found.setting.focus)
        figures[CASES] = save(case_figure(cases, preprocessor.per_unit, preprocessor.unit), place / CASES, ".png")
    if table["group"].isin(GROUPS).any():
        figures["groups"] = save(group_figure(table, chosen), place / "groups")
    if locked := found.learned.locked:
        ill = ranked(table)[lambda rows: rows["label"] == "1"]
        if locked.possible and (ill["lesion_ml"] != "").any():
            figures["volumes"] = save(volume_figure(table, locked), place / "volumes")
        if (ranked(table)["label"] == "0").any():
            figures["conformal"] = save(conformal_figure(table, locked), place / "conformal")
    if numbers := read_training(found):
        figures["training"] = save(training_figure(numbers), place / "training")
    for earlier in (*place.glob("*.png"), *place.glob("*.svg")):
        if earlier.stem not in figures:
            earlier.unlink()  # of an evaluation that had more to show
    return figures


def phase_folders(found: Evaluated) -> dict[str, PhaseFolder]:
    """Where the phases of the detector lie, by name in their order."""
    focus = found.setting.focus
    phases = focus.lineage["settings"]["detector"]["phases"]
    return {phase: PhaseFolder(focus.folder.path.parent / phase) for phase in phases}


def read_training(found: Evaluated) -> dict[str, pd.DataFrame]:
    """The numbers of each phase that has several validations."""
    files = {phase: folder.path / TRAINING for phase, folder in phase_folders(found).items()}
    tables = {phase: pd.read_csv(file) for phase, file in files.items() if file.exists()}
    return {phase: table for phase, table in tables.items() if len(table) > 1}


def read_alarms(found: Evaluated) -> list[dict[str, Any]]:
    """What the phases of the detector raised, in their order."""
    alarms = []
    for phase, folder in phase_folders(found).items():
        file = folder.path / "health.json"
        if file.exists():
            alarms += [{**alarm, "phase": phase} for alarm in json.loads(file.read_text())["alarms"]]
    return alarms


def made_of(found: Evaluated) -> list[dict[str, Any]]:
    """The lineage of each phase that led to the detector, with its name."""
    folders = phase_folders(found)
    until = list(folders).index(found.setting.focus.stage) + 1
    stages = [(phase, folder.read()) for phase, folder in list(folders.items())[:until]]
    return [{"phase": phase, **lineage} for phase, lineage in stages if lineage]


def shown_scans(found: Evaluated) -> dict[str, Shown]:
    """Test scans for the viewer, by ``scan_id``."""
    files = {scan.scan_id: scan for scan in found.maps}
    rows = found.setting.data.split("test").to_dict("records")
    return {row["scan_id"]: Shown(row, files.get(row["scan_id"]), found.learned.healthy) for row in rows}


def view_of(preprocessor: Preprocessor, locked: Calibration | None) -> View:
    """How a detector's volumes are shown."""
    zero = float(preprocessor.to_physical(np.array(0.0)))
    return View((preprocessor.per_unit, zero), preprocessor.unit, standardised_level(locked))


def standardised_level(locked: Calibration | None) -> float:
    """From which deviation, in healthy spreads, the viewer shows colour: the locked threshold of voxels."""
    levels = locked.voxel_thresholds if locked else {}
    found = next((level for name, level in levels.items() if name.endswith("standardised")), DEVIATION)
    return min(found, DEVIATION_LIMIT)


def choose_cases(found: Evaluated) -> list[Case]:
    """Fig. 6: scans without findings, missed and found ones: the median and the highest score of normal scans, which is
    the first false alarm, and the lowest and the highest scores of abnormal ones.

    Without labels, the highest and the lowest of all; none where the detector does not reconstruct.
    """
    rows = found.setting.data.split("test")
    files = {scan.scan_id: scan for scan in maps_of(rows, found.out) if scan.reconstruction}
    if not files:
        return []
    lesions = dict(zip(rows["scan_id"], rows["lesion_mask"], strict=True))
    scored = found.table if (labelled := ranked(found.table)).empty else labelled
    score, picks = found.learned.chosen, []
    by_label = {str(k): rows.sort_values(score) for k, rows in scored.groupby("label")}
    if (well := by_label.get("0")) is not None:
        picks += [("no findings, median", well.iloc[[len(well) // 2]]), ("no findings, highest", well.tail(1))]
    if (ill := by_label.get("1")) is not None:
        picks += [("lowest: missed first", ill.head(EXAMPLES)), ("highest: found first", ill.tail(EXAMPLES))]
    if (unknown := by_label.get("")) is not None:
        picks += [("unlabelled, lowest", unknown.head(EXAMPLES)), ("unlabelled, highest", unknown.tail(EXAMPLES))]
    named = {row["scan_id"]: (name, row) for name, some in picks for row in some.to_dict("records")}
    return [case_of(row, score, name, files[i], lesions[i]) for i, (name, row) in named.items()]


def case_of(row: Mapping[Any, Any], score: str, name: str, files: ScanMaps, lesion: str) -> Case:
    """A scan of the table as a case; ``name`` says why it is shown."""
    kinds = row["lesions"].replace("_", " ").replace(";", ",\n")
    what = f"{kinds}\n" if kinds else ""
    title = f"{what}{name}\n{words_of(score)} {row[score]:#.3g}"
    shown = voxels(files.image), voxels(files.reconstruction), voxels(lesion) if lesion else None
    return Case(title, *shown, spacing_of(files.image))


def save(figure: Figure, stem: Path, shown: str = ".svg") -> Path:
    """Write a figure as SVG and PNG; returns the file that the page shows."""
    figure.draw_without_rendering()  # a first pass: axes of equal scale take their size, and the second fits titles
    for suffix in (".svg", ".png"):
        with written_whole(stem.with_suffix(suffix)) as path:
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Date": None} if suffix == ".svg" else None)
        figure.set_layout_engine("none")  # what is laid out stays so: it is half of the time
    plt.close(figure)
    return stem.with_suffix(shown)


def show(found: Evaluated, page: Path) -> None:
    """The AUC table in the terminal, and where the report is."""
    table = Table(title="Test scans, value [95 % interval]", title_justify="left")
    for column in ("Detector or part", "AUC", "AP", "normal + abnormal"):
        table.add_column(column)
    for row in auc_rows(found.metrics):
        table.add_row(*row.values())
    console.print(table)
    if found.metrics["set_aside"]:
        say(f"test scans without a score: {set_aside_text(found.metrics['set_aside'])}")
    for note in found.metrics["notes"]:
        say(note)
    say(f"report: {page.resolve()}")
