"""Judge the trained methods of the race on its test scans: ``python -m experiments.comparison.judge``.

Each run of ``runs/race-*`` is evaluated on its own cohort, by whose healthy scans its score is chosen and standardised,
and then, once, on the test seeds of ``race.yaml``. What is kept is small enough for git: ``scans.csv`` and for each run
``scores/NAME.csv`` (its own and its chosen score of these scans, in their order) and ``scores/NAME.json``; the same in
``scores/dense`` where what is denser than blood is not judged. What is there already is left as it is.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly3d.arguments import read_study
from anomaly3d.evaluation.elsewhere import PLACE
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.writer import RESCORED
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say

HERE = Path(__file__).parent
SCANS, KEPT, RACE = HERE / "scans.csv", HERE / "scores", HERE / "race.yaml"
DENSE = KEPT / "dense"
LAYERS = {KEPT: "densest_hu=null", DENSE: "densest_hu=90"}
TOLD = ["scan_id", "subject_id", "site", "label", "group", "lesions", "lesion_ml"]
WHERE = ("auroc", "ap", "dice", "found")


def evaluate(run: Path, *more: str) -> None:
    """Run the command that a user has."""
    words = [f"run={run.name}", f"runs_dir={run.parent}", "logger=none", "images=0", "controls=[]", *more]
    subprocess.run([sys.executable, "-m", "anomaly3d.evaluate", *words], check=True)


def keep(run: Path, place: Path, kept: Path) -> None:
    """Keep the scores of a run on the test scans, and where it found the lesions, in ``kept``."""
    metrics = json.loads((place / "metrics.json").read_text())
    focus = choose_trained(run, None)
    table = pd.read_csv(place / focus.label / RESCORED, keep_default_na=False, dtype={"label": str})
    chosen = metrics["score"]["chosen"]
    if not SCANS.exists():
        table[TOLD].to_csv(SCANS, index=False)
    if list(pd.read_csv(SCANS)["scan_id"]) != list(table["scan_id"]):
        sys.exit(f"{run.name} was judged on other scans than those of {SCANS}")
    found = metrics["localization"].get("lesion_mask", {})
    told: dict[str, Any] = {
        "title": focus.lineage["title"],
        "role": focus.lineage["role"],
        "stage": focus.stage,
        "chosen": chosen,
        "pseudo_auc": metrics["score"]["pseudo_auc"][chosen],
        "maps": {name: {n: entry[n] for n in WHERE if n in entry} for name, entry in found.items()},
    }
    kept.mkdir(exist_ok=True)
    scores = table[["total", chosen]].set_axis(["own", "chosen"], axis=1)
    scores.to_csv(kept / f"{run.name}.csv", index=False, float_format="%.6g")
    with written_whole(kept / f"{run.name}.json") as path:  # last: with it a run is done
        path.write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    """Evaluate what is not kept yet, in the order that is given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="folders; none: all of runs/race-*")
    parser.add_argument("--tidy", action="store_true", help="remove each run's volumes when it is done")
    asked = parser.parse_args()
    for run in asked.runs or sorted(Path("runs").glob("race-*")):
        layers = {kept: words for kept, words in LAYERS.items() if not (kept / f"{run.name}.json").exists()}
        for kept, words in layers.items():
            say(f"judge: {run.name}, {words}")
            evaluate(run, words)
            evaluate(run, words, *read_study("prepare", RACE))
            (place,) = (run / PLACE).iterdir()
            keep(run, place, kept)
        if layers and asked.tidy:
            for folder in ("evaluation", PLACE):
                shutil.rmtree(run / folder)


if __name__ == "__main__":
    main()
