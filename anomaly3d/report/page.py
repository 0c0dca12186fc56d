"""One self-contained HTML page from metrics, scores and figures; opens from disk without network."""

import base64
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from matplotlib.colors import to_rgb

from anomaly3d.report.figures import BLUE, RED, RESIDUAL_LIMIT, capital, words_of
from anomaly3d.report.tables import auc_rows, tables
from anomaly3d.report.viewer import DEVIATION_LIMIT
from anomaly3d.scans.manifest import FAULTS
from anomaly3d.scoring.familiarity import UNLIKE
from anomaly3d.system.files import written_whole

CAPTIONS = {
    "roc": "ROC curves on the test scans (the paper's Fig. 4) with 95 % bands over subjects, and beside them those of "
    "the other detectors and controls. In the legends: AUC [95 %], normal + abnormal scans.",
    "lesions": "Precision and recall by lesion type against all normal scans (Fig. 5).",
    "cases": "Inputs, reconstructions and residuals in three planes (Fig. 6, S1 to S3): of scans without findings the "
    "median and the highest score, of abnormal or unlabelled ones the lowest and the highest.",
    "groups": "Anomaly scores by group (Fig. 7); the bar is the median.",
    "volumes": "Recall at the locked threshold against lesion volume; dots above are scans found, below missed.",
    "training": "How the training went: healthy validation heads, and pasted anomalies (pseudo) told from them.",
    "conformal": "Do conformal p-values keep their promise on healthy test scans? On the diagonal or below it they do.",
}


def set_aside_text(counts: dict[str, dict[str, int]]) -> str:
    """How many test scans have no score, ``3 rejected (2 normal, 1 abnormal)``; empty for none."""
    parts = [
        f"{sum(labels.values())} {verdict} ({', '.join(f'{n} {label}' for label, n in labels.items())})"
        for verdict, labels in counts.items()
    ]
    return " and ".join(parts)


def verdict(metrics: dict[str, Any], run: str) -> str:
    """The result in a sentence."""
    result, name = metrics["results"]["all"], metrics["detectors"][metrics["focus"]]["title"]
    if result is None:
        return f"Run {run}: the test split lacks normal or abnormal scans, so there is no AUC; scores are below."
    estimate = result["auc"]
    low, high = estimate["ci95"]
    scans = f"{estimate['n_normal']} normal head scan{'s' * (estimate['n_normal'] != 1)}"
    words = (
        f"{capital(name)} of run {run} tells {estimate['n_abnormal']} abnormal from {scans} with an AUC of "
        f"{estimate['value']:.2f} (95 % interval {low:.2f} to {high:.2f})"
    )
    if not (chosen := metrics["results"]["selected"]):
        return f"{words}."
    other = chosen["auc"]
    by = "named by the config" if metrics["score"]["by"] == "config" else "chosen without a label"
    low, high = other["ci95"]
    return (
        f"{words} by its own score A(x), and of {other['value']:.2f} ({low:.2f} to {high:.2f}) by {chosen['score']}, "
        f"{by}."
    )


@dataclass(frozen=True)
class View:
    """How volumes are shown: ``scale`` is how much of ``unit`` a difference of 1 is, and its value at 0; ``level`` the
    healthy spreads from which the standardised map has colour."""

    scale: tuple[float, float]
    unit: str
    level: float


@dataclass(frozen=True)
class Page:
    """Everything that a report shows.

    ``run`` is what was evaluated, ``place`` the folder of the detector's volumes in the run;
    ``table``: test scans with their scores; ``flagged``: by the locked threshold, None where there is none;
    ``figures``: SVG or PNG files by name; ``thumbnails`` and ``volumes``: of ``report.viewer``, empty where no scan may
    be shown; ``view``: how; ``alarms``: ``phase, epoch, words``; ``made``: the lineage of each phase, with its name.
    """

    run: str
    place: str
    metrics: dict[str, Any]
    table: pd.DataFrame
    flagged: pd.Series | None
    figures: dict[str, Path]
    thumbnails: dict[str, str]
    volumes: dict[str, dict[str, Any]]
    view: View
    alarms: list[dict[str, Any]]
    made: list[dict[str, Any]]


P_VALUE = "p"  # the column of conformal p-values among healthy scans
COLUMNS = ("cohort", "group", "lesions", "lesion_ml", "fault", "age", "sex")  # shown where any scan has one


def found(label: str, flagged: bool) -> str:
    """What became of a scan at the locked threshold."""
    words = {("1", True): "found", ("1", False): "missed", ("0", True): "false alarm", ("0", False): "true negative"}
    return words.get((label, flagged), "flagged" if flagged else "below threshold")


def parts(row: dict[Any, Any], score: str) -> list[str]:
    """What the viewer's title says of a scan."""
    p = f"p = {row[P_VALUE]:.3f}" if P_VALUE in row else ""
    ml = f"{float(row['lesion_ml']):.1f} ml" if row.get("lesion_ml") else ""
    what = " and ".join(filter(None, (*row["lesions"].split(";"), *row["fault"].split(";"))))
    return [row["scan_id"], row["group"], what, ml, f"{words_of(score)} {row[score]:.4g}", p]


def scan_rows(page: Page) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns of the table of scans, and its rows, the highest score first."""
    lesions, score = page.table["lesions"].str.split(";"), page.metrics["score"]["chosen"]
    shown = page.table.assign(
        flagged=page.flagged if page.flagged is not None else False,
        lesions=lesions.map(lambda found: ";".join(word for word in found if word not in FAULTS)),
        fault=lesions.map(lambda found: ";".join(word for word in found if word in FAULTS)),
    ).sort_values(score, ascending=False)
    described = [c for c in COLUMNS if c in shown and (shown[c] != "").any()]
    first = [score, *([P_VALUE] if P_VALUE in shown else [])]
    distances = [c for c in dict.fromkeys(["total", *page.metrics["results"]["part"]]) if c not in first]
    judged = ["at threshold"] if page.flagged is not None else []
    differs = UNLIKE in shown and (shown[UNLIKE] != "").any()  # the longest text stands last
    rows = []
    for row in shown.to_dict("records"):
        outcome = found(row["label"], row["flagged"]) if page.flagged is not None else ""
        rows.append(
            {
                "id": row["scan_id"],
                "title": " · ".join(p for p in (*parts(row, score), outcome) if p),
                "thumbnail": page.thumbnails.get(row["scan_id"], ""),
                "cells": [
                    row["scan_id"],
                    *([outcome] if judged else []),
                    *(f"{row[c]:.4g}" for c in first),
                    *(str(row[c]).replace(";", "; ") for c in described),
                    *(f"{row[c]:.4g}" for c in distances),
                    *([row[UNLIKE]] if differs else []),
                ],
            }
        )
    return ["scan_id", *judged, *first, *described, *distances, *([UNLIKE] if differs else [])], rows


def script_safe(text: str) -> Markup:
    """Text for inside a script element: nothing in it ends the element."""
    return Markup(text.replace("</", "<\\/").replace("<!--", "<\\!--"))


def render(path: Path, template: str, volumes: dict[str, dict[str, Any]], view: View, **values: Any) -> None:
    """Write a page with a viewer as one file that asks no host for anything.

    Args:
        volumes: what the viewer shows, by ``scan_id``; ``values``: what else the template names.
    """
    environment = Environment(
        loader=PackageLoader("anomaly3d.report"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    half, middle = view.scale
    data = {
        "limit": RESIDUAL_LIMIT * half,
        "red": [round(255 * c) for c in to_rgb(RED)],
        "blue": [round(255 * c) for c in to_rgb(BLUE)],
        "volumes": volumes,
        "window": [middle - half, middle + half],
        "middle": middle,
        "half": half,
        "deviations": DEVIATION_LIMIT,
        "unit": view.unit,
    }
    html = environment.get_template(template).render(
        volumes=len(volumes),
        half=half,
        unit=view.unit,
        level=round(view.level, 2),
        deviations=DEVIATION_LIMIT,
        limit=f"{RESIDUAL_LIMIT * half:g}",
        colours=(BLUE, RED),
        data=script_safe(json.dumps(data)),
        niivue=script_safe((files("nilearn") / "_assets/js/niivue.umd.js").read_text("utf-8")),
        script=script_safe((files("anomaly3d.report") / "templates" / "page.js").read_text("utf-8")),
        **values,
    )
    with written_whole(path) as beside:
        beside.write_text(html, "utf-8")


def write_page(path: Path, page: Page) -> None:
    """Write the page of an evaluated run."""
    images = [
        {
            "data": base64.b64encode(file.read_bytes()).decode(),
            "type": "svg+xml" if file.suffix == ".svg" else "png",
            "caption": CAPTIONS[name],
        }
        for name, file in page.figures.items()
    ]
    columns, rows = scan_rows(page)
    render(
        path,
        "page.html",
        page.volumes,
        page.view,
        standardised=True,
        run=page.run,
        place=page.place,
        notes=page.metrics["notes"],
        verdict=verdict(page.metrics, page.run),
        alarms=page.alarms,
        rows=auc_rows(page.metrics),
        tables=[t for t in tables(page.metrics) if t.rows],
        set_aside=set_aside_text(page.metrics["set_aside"]),
        figures=images,
        images=bool(page.thumbnails),
        found=any(packed["layers"] for packed in page.volumes.values()),
        flagged=page.flagged is not None,
        columns=columns,
        scans=rows,
        made=page.made,
    )
