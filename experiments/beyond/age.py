"""Does it help that the healthy spread follows age? ``python -m experiments.beyond.age pca=runs/bench/pca ...``

Each detector's evaluation on its own cohort must be there. Its ``exceedance`` is computed anew with one healthy spread,
with one that follows age, and, as the control, with one that follows ages shuffled over all scans. Writes ``age.json``
and the table of ``README.md``.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.evaluation.thresholds import AGES, between
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.anomaly_maps import Ageing, Healthy, ScanMaps, maps_of
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.writer import read_scores
from anomaly3d.statistics.auc import auc, compare_auc, share
from anomaly3d.statistics.conformal import threshold
from anomaly3d.system.workers import run_in_threads
from experiments.beyond.kept import HERE, exceedance, measured
from experiments.scores.measure import fill, markdown

RATE = 0.1  # of healthy calibration scans that the threshold may flag
SHUFFLES = 10
WORKERS = 2


def score(scan: ScanMaps, healthy: Healthy) -> float:
    """``exceedance`` of a scan's files."""
    return exceedance(scan.read(), healthy)


def shuffled(maps: dict[str, list[ScanMaps]], rng: np.random.Generator) -> dict[str, list[ScanMaps]]:
    """With the ages of all scans of a split in another order."""
    orders = {split: rng.permutation([scan.age for scan in scans]) for split, scans in maps.items()}
    return {s: [replace(m, age=a) for m, a in zip(scans, orders[s], strict=True)] for s, scans in maps.items()}


def judge(table: pd.DataFrame, maps: dict[str, list[ScanMaps]], by_age: bool, what: str) -> tuple[np.ndarray, float]:
    """Scores of the test scans and the threshold from the calibration scans."""
    healthy = Healthy.measure(maps["validation"], table, ())
    if by_age:
        subjects = [scan.scan_id for scan in maps["validation"]]  # a phantom has one scan
        healthy = replace(healthy, ageing=Ageing.measure(maps["validation"], subjects, healthy))
    jobs = [(scan, healthy) for split in ("calibration", "test") for scan in maps[split]]
    scores, count = np.array(list(run_in_threads(score, jobs, WORKERS, what))), len(maps["calibration"])
    return scores[count:], threshold(scores[:count], RATE)


def told(table: pd.DataFrame, scores: np.ndarray, level: float) -> dict[str, Any]:
    """AUC at both sites and by age band, healthy scans flagged by age band, and how healthy scores follow age."""
    rows = table.assign(score=scores, band=between(table["age"], AGES, "years"))
    well = rows[rows["label"] == "0"]

    def of(part: pd.DataFrame) -> dict[str, Any]:
        return auc(part["label"].astype(int).to_numpy(), part["score"].to_numpy()).as_json()

    return {
        "A": of(rows[rows["site"] == "A"]),
        "B": of(rows[rows["site"] == "B"]),
        "by_age": {str(band): of(part) for band, part in rows.groupby("band")},
        "flagged": {
            str(band): share((part["score"] >= level).to_numpy(), part["subject_id"].to_numpy())
            for band, part in well.groupby("band")
        },
        "score_follows_age": round(float(spearmanr(well["age"].astype(float), well["score"]).statistic), 3),
    }


def measure(run: Path, name: str, data_dir: Path) -> dict[str, Any]:
    """One detector in the three ways."""
    trained = choose_trained(run, name)
    data = HeadCTDataModule(prepared_of(trained, data_dir), 8)
    data.setup()
    out = run / "evaluation" / trained.label
    table = ranked(read_scores(out / "scores.csv"))
    files = {s: maps_of(data.split(s), out if s == "test" else out / s) for s in ("validation", "calibration", "test")}
    order = {scan.scan_id: scan for scan in files["test"]}
    files["test"] = [order[scan_id] for scan_id in table["scan_id"]]
    one, level = judge(table, files, False, f"{name}, one spread")
    aged, aged_level = judge(table, files, True, f"{name}, by age")
    rng = np.random.default_rng(0)
    drawn = [told(table, *judge(table, shuffled(files, rng), True, f"{name}, shuffled")) for _ in range(SHUFFLES)]
    labels = table["label"].astype(int).to_numpy()
    gain = {s: compare_auc(labels[k], aged[k], one[k]) for s in "AB" if (k := (table["site"] == s).to_numpy()).any()}
    return {
        "one spread": told(table, one, level),
        "by age": told(table, aged, aged_level),
        "by shuffled ages": drawn,
        "gain": {site: difference.as_json() for site, difference in gain.items()},
        "n": {split: len(maps) for split, maps in files.items()},
    }


def rows_of(name: str, found: dict[str, Any]) -> list[list[str]]:
    """Rows of the table."""
    rows = []
    for way in ("one spread", "by age", "by shuffled ages"):
        every = found[way] if isinstance(found[way], list) else [found[way]]
        bands = every[0]["flagged"]

        def mean(*keys: str, every: list[dict[str, Any]] = every) -> float:
            values = every
            for key in keys:
                values = [v[key] for v in values]
            return float(np.mean(values))

        flagged = [f"{mean('flagged', band, 'value'):.0%}" for band in bands]
        by_age = [f"{mean('by_age', band, 'value'):.3f}" for band in bands]
        sites = [f"{mean(site, 'value'):.3f}" for site in "AB"]
        rows.append([name, way, *sites, f"{mean('score_follows_age'):.2f}", *flagged, *by_age])
    return rows


def main() -> None:
    """Measure what is not in ``age.json`` yet, and fill the table."""
    found = measured(__doc__, "age.json", measure)
    bands = next(iter(found.values()))["one spread"]["flagged"]
    head = ["detector", "healthy spread", "AUC, A", "B", "healthy score over age, Spearman"]
    head += [f"flagged, {band}" for band in bands] + [f"AUC, {band}" for band in bands]
    fill(HERE / "README.md", "age", markdown(head, [row for n, f in found.items() for row in rows_of(n, f)]))


if __name__ == "__main__":
    main()
