"""How hard the phantom cohort is: AUC of the controls on the cohorts of ``experiments/scores``.

``python -m experiments.phantom_difficulty.measure`` writes ``table-v4.json`` and the first table of the README from the
runs of ``experiments/scores/study.sh`` and from the supervised control of ``supervised.sh``, which learned from
labelled scans of a seed that no other cohort uses.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import of_lesion, ranked
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.inference import Inference, prepared_of
from anomaly3d.scoring.writer import read_scores
from anomaly3d.statistics.auc import auc
from experiments.scores.measure import TRAINER, fill, markdown

HERE = Path(__file__).parent
SCORES = HERE.parent / "scores"
SITE = "A"
ROWS = {  # of the README: detector, its name, its bound for its own score
    "mean_volume": ("distance to the mean volume", "0.50-0.65"),
    "zscore": ("z-score at each voxel", "at most 0.75"),
    "mirror": ("left against right", "at most 0.75"),
    "bright_volume": ("HU threshold (volume above 55 HU)", "at most 0.80"),
    "pca": ("principal components", "at most 0.85"),
    "supervised": ("supervised network, 400 labelled phantoms", "at least 0.90"),
    "twin": ("lesion-free twin", "at least 0.97"),
}


def ranks(table: pd.DataFrame) -> dict[str, Any]:
    """AUC of ``total`` at ``SITE``, and by kind of bleed."""
    rows = ranked(table)
    rows = rows[rows["site"] == SITE]

    def of(part: pd.DataFrame) -> float:
        return auc(part["label"].astype(int).to_numpy(), part["total"].to_numpy(float)).value

    return {"A": of(rows), "by_lesion": {kind: of(of_lesion(rows, kind)) for kind in TYPES}}


def supervised(run: Path, teacher: Path, data_dir: Path) -> dict[str, Any]:
    """The supervised control of the run ``teacher`` on the test scans of another run."""
    data = HeadCTDataModule(prepared_of(choose_trained(run, "fanogan"), data_dir), 8)
    data.setup()
    out = run / "evaluation" / "supervised"
    return ranks(Inference(data, TRAINER).once(choose_trained(teacher, "supervised"), "test", out))


def over_cohorts(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and range of the AUC over cohorts, and its mean by kind of bleed."""
    values = [f["A"] for f in found]
    return {
        "mean": round(float(np.mean(values)), 3),
        "range": [round(min(values), 3), round(max(values), 3)],
        "cohorts": len(values),
        "by_lesion": {kind: round(float(np.mean([f["by_lesion"][kind] for f in found])), 3) for kind in TYPES},
    }


def main() -> None:
    """Gather and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", nargs="+", default=["bench21", "bench22", "bench23"])
    parser.add_argument("--teacher", default="bench20")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    own: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    layered: dict[str, list[dict[str, Any]]] = {}
    for run in arguments.runs:
        measured = json.loads((SCORES / f"{run}.json").read_text())
        for name in own:
            if name in measured:
                scores, chosen = measured[name]["scores"], measured[name]["chosen"]
                for into, score in ((own, "total"), (layered, chosen)):
                    found = {**scores[score], "A": scores[score]["A"]["value"]}
                    into.setdefault(name, []).append(found)
        folder = arguments.runs_dir / run
        if folder.exists():  # of a run whose machine is gone the scores of the controls are left
            own["supervised"].append(supervised(folder, arguments.runs_dir / arguments.teacher, arguments.data_dir))
        twin = folder / "evaluation" / "twin" / "scores.csv"
        if twin.exists():
            own["twin"].append(ranks(read_scores(twin)))
    table = {
        "phantom_version": 4,
        "runs": arguments.runs,
        "own_score": {name: over_cohorts(found) for name, found in own.items()},
        "chosen_score": {name: over_cohorts(found) for name, found in layered.items()},
    }
    (HERE / "table-v4.json").write_text(json.dumps(table, indent=1) + "\n")
    lines = []
    for name, (words, bound) in ROWS.items():
        values, after = table["own_score"][name], table["chosen_score"].get(name)
        low, high = values["range"]
        lines.append(
            [
                words,
                f"{values['mean']:.3f} ({low:.2f}-{high:.2f}), {values['cohorts']}",
                bound,
                f"{after['mean']:.3f} ({after['range'][0]:.2f}-{after['range'][1]:.2f})" if after else "",
                *(f"{v:.2f}" for v in values["by_lesion"].values()),
            ]
        )
    head = ["detector", "own score: AUC, mean (range), cohorts", "bound", "chosen score", *TYPES]
    fill(HERE / "README.md", "difficulty", markdown(head, lines))


if __name__ == "__main__":
    main()
