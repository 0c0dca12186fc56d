"""The paper's Table S2, which is not public: what phase 3 trains, and with which loss.

``python -m experiments.comparison.table_s2 --parent runs/race-fanogan_phase2-1/fanogan/encoder`` fine-tunes the race's
f-AnoGAN from where phase 2 ended, once each way, and judges it as every method of the race; without ``--parent`` it
only writes ``table_s2.json`` and the table of the README from what is kept.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

from anomaly3d.evaluation.metrics import as_text, auc_of, ranked
from anomaly3d.statistics.auc import compare_auc, holm
from anomaly3d.system.progress import say
from experiments.comparison.judge import HERE, KEPT, SCANS
from experiments.comparison.methods import CHECKS, cohort, steps_in
from experiments.scores.measure import fill, markdown

RACED = 20  # minutes a method
BEFORE = "race-fanogan_phase2-1"
WAYS = {
    ("encoder", "generator"): ("both", "image", "feature"),
    ("encoder",): ("both", "image", "feature"),
    ("generator",): ("both", "image", "feature"),
    ("encoder", "generator", "critic"): ("both", "feature"),
}
AS_RACED = (("encoder", "generator"), "both")  # is the race's own f-AnoGAN


def run_of(trained: tuple[str, ...], loss: str) -> str:
    """The run's name."""
    return "race-fanogan-1" if (trained, loss) == AS_RACED else f"s2-{'-'.join(trained)}-{loss}"


def train(parent: Path, trained: tuple[str, ...], loss: str) -> None:
    """Phase 3 one way, for as many steps as in the race, and its judgement."""
    steps = steps_in(RACED, "fanogan")["finetune"]
    words = [
        *cohort(),
        "+phase=finetune",
        f"parent={parent}",
        f"run={run_of(trained, loss)}",
        f"phase.module.trained=[{','.join(trained)}]",
        f"phase.module.loss={loss}",
        f"++phases.finetune.steps={steps}",
        f"++phases.finetune.steps_per_epoch={steps // CHECKS}",
    ]
    subprocess.run([sys.executable, "-m", "anomaly3d.train", *words], check=True)
    judge = [sys.executable, "-m", "experiments.comparison.judge", "--tidy", f"runs/{run_of(trained, loss)}"]
    subprocess.run(judge, check=True)


def scores_of(run: str) -> pd.DataFrame:
    """Of the race's test scans at site A."""
    scans = pd.read_csv(SCANS, dtype={"label": str}, keep_default_na=False)
    table = ranked(pd.concat([scans, pd.read_csv(KEPT / f"{run}.csv")], axis=1))
    return table[table["site"] == "A"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=Path, help="folder of phase 2")
    asked = parser.parse_args()
    ways = [(trained, loss) for trained, losses in WAYS.items() for loss in losses]
    for trained, loss in ways if asked.parent else ():
        if not (KEPT / f"{run_of(trained, loss)}.json").exists():
            say(f"{trained}, {loss}")
            train(asked.parent, trained, loss)
    kept = [way for way in ways if (KEPT / f"{run_of(*way)}.json").exists()]
    before = scores_of(BEFORE)
    labels = before["label"].astype(int).to_numpy()
    tables = {way: scores_of(run_of(*way)) for way in kept}
    gains = {w: compare_auc(labels, t["chosen"].to_numpy(), before["chosen"].to_numpy()) for w, t in tables.items()}
    ps = holm([gain.p for gain in gains.values()])
    first = (as_text(auc_of(before, name).as_json()) for name in ("own", "chosen"))
    rows = [["nothing", "", *first, "", ""]]
    found = []
    for (way, table), p in zip(tables.items(), ps, strict=True):
        trained, loss = way
        own, auc, gain = (x.as_json() for x in (auc_of(table, "own"), auc_of(table, "chosen"), gains[way]))
        found.append({"trained": trained, "loss": loss, "auc_own_score": own, "auc": auc, "gain": gain, "p_holm": p})
        low, high = gain["ci95"]
        told = f"{gain['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
        rows.append([", ".join(trained), loss, as_text(own), as_text(auc), told, f"{p:.3f}"])
    (HERE / "table_s2.json").write_text(json.dumps({"rows": found}, indent=1) + "\n")
    head = ["trained", "loss", "A(x), A", "chosen, A", "gain over phase 2", "p, Holm"]
    fill(HERE / "README.md", "s2", markdown(head, rows))


if __name__ == "__main__":
    main()
