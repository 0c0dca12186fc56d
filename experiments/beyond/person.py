"""Does it help that the networks are told age and sex? ``python -m experiments.beyond.person told=runs/person-film``

Each run is a trained f-AnoGAN on one cohort: ``told``, ``shuffled`` (with ``shuffled.Shuffled``) and ``none``. Scans
are scored where they are not yet, also with nothing known of them. Writes ``person.json`` and the table of
``README.md``; what ``person.json`` holds is not measured again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.runs.folder import Trained, choose_trained
from anomaly3d.scoring.anomaly_maps import ScanMaps
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.writer import read_scores
from anomaly3d.statistics.auc import compare_auc
from experiments.beyond.age import judge, told
from experiments.beyond.kept import HERE, measured, scored_maps
from experiments.scores.measure import fill, markdown


def maps_by(trained: Trained, data_dir: Path, out: Path, known: bool) -> dict[str, list[ScanMaps]]:
    """Maps by split, the test scans ranked ones, of networks that are told what is known or nothing."""
    prepared = prepared_of(trained, data_dir)
    if not known:
        prepared = replace(prepared, table=prepared.table.assign(age="", sex=""))
    data = HeadCTDataModule(prepared, 8)
    data.setup()
    return scored_maps(trained, data, out)


def measure(run: Path, name: str, data_dir: Path) -> dict[str, Any]:
    """One run: its scans as they are known, and the test scans as if nothing were known of them."""
    trained, out = choose_trained(run, "fanogan"), run / "evaluation" / "fanogan"
    maps = maps_by(trained, data_dir, out, True)
    order = [scan.scan_id for scan in maps["test"]]
    table = ranked(read_scores(out / "scores.csv")).set_index("scan_id", drop=False).loc[order]
    table = table.reset_index(drop=True)
    scores, level = judge(table, maps, False, f"{name}, one spread")
    aged, aged_level = judge(table, maps, True, f"{name}, by age")
    found = {
        "one spread": told(table, scores, level),
        "by age": told(table, aged, aged_level),
        "score": [float(f"{s:.6g}") for s in scores],
        "scan_id": order,
        "site": table["site"].tolist(),
        "label": table["label"].tolist(),
        "total": [float(f"{s:.6g}") for s in table["total"]],
    }
    if trained.lineage["settings"]["model"].get("person", "none") != "none":
        unknown = maps_by(trained, data_dir, run / "evaluation" / "untold", False)
        mixed = {**maps, "test": unknown["test"]}
        found["unknown"] = told(table, judge(table, mixed, False, f"{name}, nothing known")[0], level)
    return found


def rows_of(name: str, found: dict[str, Any]) -> list[list[str]]:
    """Rows of the table."""
    rows = []
    for way in ("one spread", "by age", "unknown"):
        if way in found:
            part = found[way]
            sites = [f"{part[s]['value']:.3f} [{part[s]['ci95'][0]:.3f}, {part[s]['ci95'][1]:.3f}]" for s in "AB"]
            flagged = [f"{share['value']:.0%}" for share in part["flagged"].values()]
            rows.append([name, way, *sites, f"{part['score_follows_age']:.2f}", *flagged])
    return rows


def gain(found: dict[str, Any], other: dict[str, Any], score: str) -> str:
    """Of a score's AUC over another run's, both sites."""
    labels = np.array(found["label"], int)
    d = compare_auc(labels, np.array(found[score]), np.array(other[score]))
    return f"{d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p {d.p:.3f}"


def main() -> None:
    """Measure what is not in ``person.json`` yet, and fill the table."""
    found = measured(__doc__, "person.json", measure)
    bands = next(iter(found.values()))["one spread"]["flagged"]
    head = ["networks", "healthy spread", "AUC, A", "B", "healthy score over age, Spearman"]
    head += [f"flagged, {band}" for band in bands]
    fill(HERE / "README.md", "person", markdown(head, [row for n, f in found.items() for row in rows_of(n, f)]))
    for name in found:
        for other in found:
            if name < other:
                print(name, "less", other, *(f"{s}: {gain(found[name], found[other], s)}" for s in ("score", "total")))


if __name__ == "__main__":
    main()
