"""The notebook runs, on the tiny run in place of the demo's, and says what the tables say."""

import json
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from sklearn.metrics import roc_auc_score

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "notebook" / "tour.ipynb"


def test_it_runs_and_says_what_the_tables_say(tiny_run, places, monkeypatch):
    monkeypatch.setenv("ANOMALY3D_RUN", str(tiny_run))
    monkeypatch.setenv("ANOMALY3D_DATA", places[0].split("=")[1])
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") for output in outputs)
    scores = pd.read_csv(tiny_run / "evaluation" / "fanogan" / "scores.csv").dropna(subset=["total", "label"])
    assert f"{len(scores)} scans, AUC of A(x) {round(roc_auc_score(scores['label'], scores['total']), 3)}" in text
    assert "accepted" in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1


def test_it_is_kept_without_its_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
