"""One table of all methods from what ``judge.py`` kept: ``python -m experiments.comparison.table``.

Writes ``table.json``, ``roc.png`` and the tables of the README. Every test is paired: the same scans, DeLong, Holm over
the methods of a column.
"""

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.evaluation.metrics import ap_of, as_text, auc_of, labels_and_scores, of_lesion, ranked, subjects_of
from anomaly3d.report.figures import LINES, draw_roc, new_axes
from anomaly3d.statistics.auc import Estimate, bootstrap_auc, compare_auc, holm
from experiments.comparison.judge import DENSE, HERE, KEPT, SCANS
from experiments.comparison.methods import METHODS
from experiments.scores.measure import VOLUMES, fill, markdown

SITES = ("A", "B")
MARKS = {"trivial": "*", "upper": "†"}  # controls, and who was shown lesions
BANDS = tuple(pairwise(VOLUMES))
OVER_SEEDS = {"own_a": ("A", "own"), "a": ("A", "chosen"), "b": ("B", "chosen")}
Training = tuple[dict[str, Any], pd.DataFrame]
OF = {"fanogan_phase2": ("fanogan", ("gan", "encoder"))}  # whose cost it has


def joined(found: dict[str, dict[str, Training]]) -> list[Training]:
    """All trainings of all methods."""
    return [training for trainings in found.values() for training in trainings.values()]


def read(kept: Path = KEPT) -> dict[str, dict[str, Training]]:
    """By method, and by the name of the run: what was told of each training, and its scores of the test scans."""
    scans = pd.read_csv(SCANS, dtype={"label": str}, keep_default_na=False)
    found: dict[str, dict[str, Training]] = {}
    for file in sorted(kept.glob("race-*.json")):
        table = ranked(pd.concat([scans, pd.read_csv(file.with_suffix(".csv"))], axis=1))
        run = file.stem.removeprefix("race-")
        found.setdefault(run.rpartition("-")[0], {})[run] = json.loads(file.read_text()), table
    return found


def cost_of(name: str) -> dict[str, Any]:
    """Seconds a scan and parameters, where they were measured."""
    costs = json.loads((HERE / "cost.json").read_text())
    method, phases = OF.get(name, (name, tuple(METHODS[name].phases) if name in METHODS else ()))
    if method not in costs:
        return {"seconds_a_scan": None, "parameters": None}
    last = costs[method][phases[-1]]
    return {key: last[key] for key in ("seconds_a_scan", "parameters")}


def row_of(name: str, trainings: list[Training]) -> dict[str, Any]:
    """Everything but the tests; of the first training, and the AUC of each."""
    told, table = trainings[0]
    a, b = (table[table["site"] == site] for site in SITES)
    ml = pd.to_numeric(a["lesion_ml"], errors="coerce")
    shift = table[table["label"] == "0"].assign(label=lambda rows: np.where(rows["site"] == "B", "1", "0"))
    return {
        "title": told["title"],
        "role": told["role"],
        "auc": auc_of(a, "chosen").as_json(),
        "auc_own_score": auc_of(a, "own").as_json(),
        "auc_b": auc_of(b, "chosen").as_json(),
        "auc_b_own_score": auc_of(b, "own").as_json(),
        "chosen": told["chosen"],
        "pseudo_auc": told["pseudo_auc"],
        "ap": ap_of(a, "chosen").as_json(),
        "by_lesion": {kind: auc_of(of_lesion(a, kind), "chosen").as_json() for kind in TYPES},
        "by_lesion_own_score": {kind: auc_of(of_lesion(a, kind), "own").as_json() for kind in TYPES},
        "by_volume": {
            f"{low:g}-{high:g} ml": auc_of(a[(a["label"] == "0") | ((ml >= low) & (ml < high))], "chosen").as_json()
            for low, high in BANDS
        },
        "healthy_b_above_a": auc_of(shift, "chosen").as_json(),
        "voxel_ap": told["maps"].get("standardised", {}).get("ap"),
        "voxel_ap_own_map": told["maps"].get("residual", {}).get("ap"),
        "dice": told["maps"].get("standardised", {}).get("dice"),
        "found": told["maps"].get("standardised", {}).get("found"),
        **cost_of(name),
        "seeds": [auc_of(t[t["site"] == "A"], "chosen").value for _, t in trainings],
        "over_seeds": {
            key: over_seeds([t for _, t in trainings], *of).as_json()
            for key, of in OVER_SEEDS.items()
            if len(trainings) > 1
        },
    }


def over_seeds(tables: list[pd.DataFrame], site: str, score: str) -> Estimate:
    """The mean AUC of a method's trainings; scans and trainings are drawn together."""
    at = [table[table["site"] == site] for table in tables]
    (labels, *_), scores = zip(*(labels_and_scores(table, score) for table in at), strict=True)
    return bootstrap_auc(labels, np.stack(scores), subjects_of(at[0]))


def add_tests(rows: dict[str, dict[str, Any]], tables: dict[str, pd.DataFrame]) -> None:
    """Each method's AUC at A minus that of the best control (by these very scans, which is to its advantage) and of
    3D f-AnoGAN."""
    trivial, methods = ([name for name, row in rows.items() if row["role"] == role] for role in ("trivial", "method"))
    best = max(trivial, key=lambda name: rows[name]["auc"]["value"], default=None)
    for other, key in ((best, "best_control"), ("fanogan", "fanogan")):
        if other not in tables:
            continue
        at_a = {name: table[table["site"] == "A"] for name, table in tables.items()}
        labels = at_a[other]["label"].astype(int).to_numpy()
        asked = [name for name in (methods if other == best else trivial + methods) if name != other]
        gaps = {n: compare_auc(labels, at_a[n]["chosen"].to_numpy(), at_a[other]["chosen"].to_numpy()) for n in asked}
        for (name, gap), p in zip(gaps.items(), holm([gap.p for gap in gaps.values()]), strict=True):
            rows[name][f"minus_{key}"] = {**gap.as_json(), "p_holm": p, "other": other}
            rows[name][f"p_vs_{key}"] = p


def without_dense() -> dict[str, dict[str, Any]]:
    """By training: its chosen score where what is denser than blood is not judged, what that gains where it has a map,
    and how far it is from the network that was shown lesions; p by Holm over the trainings at a site."""
    rows: dict[str, dict[str, Any]] = {}
    after, before = read(DENSE), read()
    shown_lesions = next(table for told, table in joined(after) if told["role"] == "upper")
    for name, trainings in after.items():
        for run, (told, table) in trainings.items():
            row: dict[str, Any] = {"chosen": told["chosen"], "voxel_ap": told["maps"].get("standardised", {}).get("ap")}
            others = {"gain": before[name][run][1]} if told["maps"] else {}
            others |= {"minus_upper": shown_lesions} if told["role"] != "upper" else {}
            for site in SITES:
                new = table[table["site"] == site]
                labels, scores = labels_and_scores(new, "chosen")
                row[site] = {"auc": auc_of(new, "chosen").as_json()}
                for key, other in others.items():
                    theirs = labels_and_scores(other[other["site"] == site], "chosen")[1]
                    row[site][key] = compare_auc(labels, scores, theirs, subjects_of(new)).as_json()
            at_a = table[table["site"] == "A"]
            row["by_lesion"] = {kind: auc_of(of_lesion(at_a, kind), "chosen").as_json() for kind in TYPES}
            rows[run] = row
    for site, key in product(SITES, ("gain", "minus_upper")):
        gaps = [row[site][key] for row in rows.values() if key in row[site]]
        for gap, p in zip(gaps, holm([gap["p"] for gap in gaps]), strict=True):
            gap["p_holm"] = p
    return dict(sorted(rows.items(), key=lambda item: -item[1]["A"]["auc"]["value"]))


def draw(tables: dict[str, pd.DataFrame], rows: dict[str, dict[str, Any]]) -> None:
    """ROC curves at site A by the chosen scores, the best first."""
    figure, axes = new_axes(9, 6)
    for name, (colour, line) in zip(rows, LINES, strict=False):
        at_a = tables[name][tables[name]["site"] == "A"]
        draw_roc(axes, name, at_a, "chosen", False, color=colour, linestyle=line, linewidth=1.2)
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=0.8)
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate", aspect="equal")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    figure.savefig(HERE / "roc.png", dpi=110)
    plt.close(figure)


def shown(estimate: dict[str, Any] | None) -> str:
    """For a table."""
    return as_text(estimate) if estimate else ""


def p_of(value: float | None) -> str:
    """A p-value for a table."""
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def site_texts(row: dict[str, Any]) -> list[str]:
    """An AUC, what it gains and how far it is from the network that was shown lesions, each with its p-value."""
    return [shown(row["auc"]), *(gap_text(row.get(key)) for key in ("gain", "minus_upper"))]


def gap_text(gap: dict[str, Any] | None) -> str:
    """A difference of AUCs, its interval and its p-value."""
    if gap is None:
        return ""
    low, high = gap["ci95"]
    return f"{gap['value']:+.3f} [{low:+.3f}, {high:+.3f}], {p_of(gap['p_holm'])}"


def main() -> None:
    """Write all of it."""
    found = {name: list(trainings.values()) for name, trainings in read().items()}
    made = {name: row_of(name, trainings) for name, trainings in found.items()}
    rows = dict(sorted(made.items(), key=lambda item: -item[1]["auc"]["value"]))
    tables = {name: found[name][0][1] for name in rows}
    add_tests(rows, tables)
    dense = without_dense()
    (HERE / "table.json").write_text(json.dumps({"rows": rows, "without_dense": dense}, indent=1) + "\n")
    draw(tables, rows)
    head = ["method", "own score, A", "chosen, A", "which", "B", "healthy B above A", "p, best control", "p, f-AnoGAN"]
    main_rows = [
        [
            f"{MARKS.get(row['role'], '')}{name}",
            shown(row["auc_own_score"]),
            shown(row["auc"]),
            f"`{row['chosen']}`",
            shown(row["auc_b"]),
            f"{row['healthy_b_above_a']['value']:.2f}",
            *(p_of(row.get(k)) for k in ("p_vs_best_control", "p_vs_fanogan")),
        ]
        for name, row in rows.items()
    ]
    fill(HERE / "README.md", "table", markdown(head, main_rows))
    strata = [*TYPES, *(f"{low:g}-{high:g} ml" for low, high in BANDS)]
    kinds = [
        [name, *(f"{({**row['by_lesion'], **row['by_volume']})[s]['value']:.2f}" for s in strata)]
        for name, row in rows.items()
    ]
    fill(HERE / "README.md", "kinds", markdown(["method", *strata], kinds))
    where = [
        [
            name,
            shown(row["voxel_ap_own_map"]),
            shown(row["voxel_ap"]),
            shown(row["dice"]),
            shown(row["found"]),
            f"{row['seconds_a_scan']:.3f}" if row["seconds_a_scan"] is not None else "",
            f"{row['parameters']:,}" if row["parameters"] is not None else "",
        ]
        for name, row in rows.items()
    ]
    several = [
        [
            name,
            ", ".join(f"{value:.3f}" for value in row["seeds"]),
            *(shown(row["over_seeds"][key]) for key in ("a", "b", "own_a")),
        ]
        for name, row in rows.items()
        if len(row["seeds"]) > 1
    ]
    head = ["method", "each, chosen score, A", "their mean, A", "B", "own score, A"]
    fill(HERE / "README.md", "seeds", markdown(head, several))
    sites = [f"{part}, {site}" for site in SITES for part in ("chosen", "gain, p", "minus supervised, p")]
    judged = [
        [
            run,
            f"`{row['chosen']}`",
            *(text for site in SITES for text in site_texts(row[site])),
            *(f"{row['by_lesion'][kind]['value']:.2f}" for kind in TYPES),
            shown(row["voxel_ap"]),
        ]
        for run, row in dense.items()
    ]
    fill(HERE / "README.md", "dense", markdown(["training", "which", *sites, *TYPES, "voxel AP"], judged))
    head = ["method", "voxel AP, residual", "standardised", "Dice", "lesions found", "s a scan", "parameters"]
    fill(HERE / "README.md", "where", markdown(head, where))


if __name__ == "__main__":
    main()
