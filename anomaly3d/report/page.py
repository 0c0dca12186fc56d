"""One self-contained HTML page from metrics, scores and figures; opens from disk without network."""

import base64
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from anomaly3d.files import written_whole
from anomaly3d.report.tables import auc_rows, tables

CAPTIONS = {
    "roc": "ROC curves on the test scans (the paper's Fig. 4), beside trivial detectors that learn nothing of anatomy.",
    "lesions": "Precision and recall by lesion type against all normal scans (Fig. 5).",
    "cases": "Inputs, reconstructions and signed residuals in three planes (Fig. 6): the highest and lowest scores of "
    "abnormal and normal scans.",
    "groups": "Anomaly scores by group (Fig. 7); the bar is the median.",
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
    estimate = metrics["auc"].get("all")
    if estimate is None:
        return f"Run {run}: the test split lacks normal or abnormal scans, so there is no AUC; scores are below."
    low, high = estimate["ci95"]
    return (
        f"Run {run} tells {estimate['n_abnormal']} abnormal from {estimate['n_normal']} normal head CTs with an AUC of "
        f"{estimate['value']:.2f} (95 % interval {low:.2f} to {high:.2f})."
    )


def write_page(
    path: Path,
    run: str,
    metrics: dict[str, Any],
    table: pd.DataFrame,
    figures: dict[str, Path],
    lineage: dict[str, Any],
) -> None:
    """Write the page; ``figures`` are SVG or PNG files that are taken into it."""
    environment = Environment(
        loader=PackageLoader("anomaly3d.report"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    images = [
        {
            "data": base64.b64encode(file.read_bytes()).decode(),
            "type": "svg+xml" if file.suffix == ".svg" else "png",
            "caption": CAPTIONS[name],
        }
        for name, file in figures.items()
    ]
    columns = [c for c in ("scan_id", "cohort", "label", "group", "lesions") if c in table]
    distances = [c for c in ("total", "image", "feature", "latent") if c in table]
    shown = table.sort_values("total", ascending=False)
    rows = [[str(row[c]) for c in columns] + [f"{row[c]:.5f}" for c in distances] for row in shown.to_dict("records")]
    html = environment.get_template("page.html").render(
        verdict=verdict(metrics, run),
        rows=auc_rows(metrics),
        tables=[t for t in tables(metrics) if t.rows],
        set_aside=set_aside_text(metrics["set_aside"]),
        figures=images,
        columns=columns + distances,
        scans=rows,
        lineage=lineage,
    )
    with written_whole(path) as beside:
        beside.write_text(html)
