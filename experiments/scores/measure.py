"""From residual to scan score, on the cohorts of ``study.sh``: before and after the layer, and each part taken away.

``python -m experiments.scores.measure bench21 bench22 bench23`` scores what is missing, writes a file a run and the
tables of the README. The layer is the one of ``anomaly3d.scoring``; its variants are written out here.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy import ndimage
from scipy.stats import spearmanr

from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.data.module import PSEUDO, HeadCTDataModule
from anomaly3d.data.pseudo_anomalies import base_of
from anomaly3d.evaluation.localization import locate_scan
from anomaly3d.evaluation.metrics import of_lesion, ranked
from anomaly3d.runs.folder import Trained, choose_trained, find_trained
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring import anomaly_maps
from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, RawMaps, ScanMaps, maps_of, smooth
from anomaly3d.scoring.calibration import calibrate
from anomaly3d.scoring.inference import Inference, prepared_of
from anomaly3d.scoring.scan_scores import choose, peak, rescore, score_names
from anomaly3d.statistics.auc import auc
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say
from anomaly3d.system.workers import run_in_threads

HERE = Path(__file__).parent
DETECTORS = ("fanogan", "fanogan/encoder", "pca", "mean_volume", "zscore", "mirror", "bright_volume")
SPLITS = ("train", "validation", PSEUDO, "calibration", "test")
TRAINER = yaml.safe_load((Path(CONF) / "trainer" / "auto.yaml").read_text())
VOLUMES = (0, 2, 10, 50, np.inf)  # ml
WORKERS = 2


@dataclass(frozen=True)
class Layer:
    """The layer's parts, each of which can be taken away: None and False are without. ``pooled`` is as it was when the
    cohorts were measured; what they and ``pooling.py`` found made it ``anomaly_maps.POOLED``."""

    standardised: bool = True
    smoothing: float = anomaly_maps.SMOOTHING
    smoothed_first: bool = False
    pooled: float = 3.0
    centred: bool = True
    scaled: bool = False
    usual: bool = True
    summary: Callable[[np.ndarray, tuple[int, ...]], float] = peak


def mean_square(values: np.ndarray, shape: tuple[int, ...]) -> float:
    """In place of ``peak``."""
    return float(np.mean(values**2))


def peak_of(count: int) -> Callable[[np.ndarray, tuple[int, ...]], float]:
    """``peak`` of another number of voxels."""
    return lambda values, shape: float(np.partition(values, len(values) - count)[-count:].mean())


LAYER = Layer()
VARIANTS = {
    "the layer, spread pooled over 3 voxels": LAYER,
    "not standardised": replace(LAYER, standardised=False),
    "mean square of all voxels, not the largest": replace(LAYER, summary=mean_square),
    "the largest 40 voxels": replace(LAYER, summary=peak_of(40)),
    "the largest 2600 voxels (1 %)": replace(LAYER, summary=peak_of(2621)),
    "not smoothed": replace(LAYER, smoothing=0),
    "smoothed twice as wide": replace(LAYER, smoothing=2.0),
    "smoothed before it is standardised": replace(LAYER, smoothed_first=True),
    "spread of each voxel by itself": replace(LAYER, pooled=0),
    "spread pooled over 1 voxel": replace(LAYER, pooled=1.0),
    "not centred on the scan's median": replace(LAYER, centred=False),
    "divided by the scan's own median deviation": replace(LAYER, scaled=True),
    "also where brain is unusual": replace(LAYER, usual=False),
}


@dataclass(frozen=True)
class Read:
    """Residuals of some scans in memory."""

    raw: list[np.ndarray]
    brain: list[np.ndarray]

    @classmethod
    def of(cls, scans: list[ScanMaps]) -> "Read":
        """From their files."""
        both = [scan.read() for scan in scans]
        return cls([raw.values[RESIDUAL] for raw in both], [raw.brain for raw in both])


def statistics(found: Read, layer: Layer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, spread and where brain is usual."""
    healthy = Healthy(0, np.zeros(()), {}, {}, {})
    for raw, brain in zip(found.raw, found.brain, strict=True):
        healthy = healthy.plus(RawMaps({RESIDUAL: smooth(raw, brain) if layer.smoothed_first else raw}, brain), 1)
    weight = np.maximum(ndimage.gaussian_filter(healthy.brains, layer.pooled), 1e-3 * healthy.count)
    mean = ndimage.gaussian_filter(healthy.total[RESIDUAL], layer.pooled) / weight
    square = healthy.square[RESIDUAL] - 2 * mean * healthy.total[RESIDUAL] + mean**2 * healthy.brains
    spread = np.sqrt((ndimage.gaussian_filter(square, layer.pooled) / weight).clip(min=0)).clip(anomaly_maps.FLOOR)
    return mean, spread, healthy.usual


def smoothed(values: np.ndarray, where: np.ndarray, width: float) -> np.ndarray:
    """``anomaly_maps.smooth`` with another width; 0: as it is."""
    if not width:
        return values * where
    weight = ndimage.gaussian_filter(where.astype(np.float32), width)
    return ndimage.gaussian_filter(values * where, width) / np.maximum(weight, 1e-3) * where


def score(raw: np.ndarray, brain: np.ndarray, usual: Any, layer: Layer) -> float:
    """Of one scan."""
    mean, spread, place = usual
    if not layer.standardised:
        return layer.summary(np.abs(smoothed(raw, brain, layer.smoothing)[brain]), brain.shape)
    where = brain & place if layer.usual else brain
    z = ((smooth(raw, brain) if layer.smoothed_first else raw) - mean) / spread
    z = z - np.median(z[where]) if layer.centred else z
    z = z / (np.median(np.abs(z[where])) / 0.6745) if layer.scaled else z
    z = z * where if layer.smoothed_first else smoothed(z, where, layer.smoothing)
    return layer.summary(np.abs(z[brain]), brain.shape)


def scores(test: Read, healthy: Read, layer: Layer, what: str) -> np.ndarray:
    """Of all scans."""
    usual = statistics(healthy, layer)
    jobs = [(raw, brain, usual, layer) for raw, brain in zip(test.raw, test.brain, strict=True)]
    return np.array(list(run_in_threads(score, jobs, WORKERS, what)))


def ranks(table: pd.DataFrame, values: np.ndarray) -> dict[str, Any]:
    """AUC of a score at sites A and B with intervals, at A by kind of bleed and by volume, and how a healthy scan of B
    stands to one of A."""
    rows = table.assign(score=values)
    a, b, well = rows[rows["site"] == "A"], rows[rows["site"] == "B"], rows[rows["label"] == "0"]

    def of(part: pd.DataFrame) -> dict[str, Any]:
        return auc(part["label"].astype(int).to_numpy(), part["score"].to_numpy()).as_json()

    ml = pd.to_numeric(a["lesion_ml"], errors="coerce")
    bands = {f"{low:g}-{high:g} ml": (ml >= low) & (ml < high) for low, high in pairwise(VOLUMES)}
    shift = auc((well["site"] == "B").astype(int).to_numpy(), well["score"].to_numpy())
    return {
        "A": of(a),
        "B": of(b),
        "by_lesion": {kind: round(of(of_lesion(a, kind))["value"], 3) for kind in TYPES},
        "by_volume": {name: round(of(a[(a["label"] == "0") | band])["value"], 3) for name, band in bands.items()},
        "B_above_A": shift.as_json(),
    }


def measure_detector(trained: Trained, data: HeadCTDataModule, inference: Inference, out: Path) -> dict[str, Any]:
    """Everything about one detector of one run."""
    folders = {split: out if split == "test" else out / split for split in SPLITS}
    tables = {s: inference.once(trained, s, folders[s], volumes=True) for s in SPLITS}
    maps = {s: maps_of(data.split(s), folders[s]) for s in SPLITS}
    keep = ranked(tables["test"])
    order = {scan.scan_id: scan for scan in maps["test"]}
    test = [order[scan_id] for scan_id in keep["scan_id"]]
    detector = trained.load()
    healthy = Healthy.measure(maps["validation"], tables["validation"], detector.parts)
    base = {scan.scan_id: scan for scan in maps["validation"]}
    left = {s.scan_id: [base[base_of(s.scan_id)]] for s in maps["validation"] + maps[PSEUDO]}
    rescored = {
        s: rescore(tables[s], maps[s], healthy, WORKERS, f"{detector.title}, {s}", left if s != "test" else None)
        for s in ("validation", PSEUDO, "test")
    }
    chosen, ranking = choose(rescored["validation"], rescored[PSEUDO])
    table = rescored["test"].set_index("scan_id").loc[keep["scan_id"]].reset_index()
    found: dict[str, Any] = {
        "chosen": chosen,
        "pasted": {name: round(value, 3) for name, value in ranking.items()},
        "scores": {name: ranks(table, table[name].to_numpy()) for name in score_names(table)},
    }
    read, usual = Read.of(test), Read.of(maps["validation"])
    found["variants"] = {n: ranks(table, scores(read, usual, layer, n)) for n, layer in VARIANTS.items()}
    trained_on = Read.of(maps["train"])
    found["variants"]["healthy statistics from training scans"] = ranks(
        table, scores(read, trained_on, LAYER, "training residuals")
    )
    found["rms"] = {n: round(rms(r), 4) for n, r in (("train", trained_on), ("validation", usual))}
    found["sites"] = site_updates(read, usual, table)
    (locked,) = calibrate("own", ["total"], tables["calibration"], maps["calibration"], healthy, 0.1, 10.0, WORKERS)
    found["where"] = where(data, test, keep, healthy, locked.voxel_thresholds)
    return found


def rms(found: Read) -> float:
    """Of residuals in the brain."""
    return float(np.sqrt(np.mean([np.mean(r[b] ** 2) for r, b in zip(found.raw, found.brain, strict=True)])))


def site_updates(test: Read, usual: Read, table: pd.DataFrame) -> dict[str, Any]:
    """AUC at site B, and its healthy scans against A's, where healthy scans of B have joined the statistics.

    Half of B's healthy scans join, the other half is tested.
    """
    well = np.flatnonzero(((table["site"] == "B") & (table["label"] == "0")).to_numpy())
    join, found = well[: len(well) // 2], {}
    tested = np.setdiff1d(np.arange(len(table)), join)
    for count in (0, 5, 10, 20):
        if count <= len(join):
            more = Read(
                usual.raw + [test.raw[i] for i in join[:count]], usual.brain + [test.brain[i] for i in join[:count]]
            )
            rest = Read([test.raw[i] for i in tested], [test.brain[i] for i in tested])
            found[str(count)] = ranks(table.iloc[tested], scores(rest, more, LAYER, f"with {count} of B"))
    return found


def where(
    data: HeadCTDataModule, test: list[ScanMaps], keep: pd.DataFrame, healthy: Healthy, thresholds: dict[str, float]
) -> dict[str, Any]:
    """Voxel AP, Dice and lesions found, of the smoothed residual and of the standardised map, at site A."""
    rows = data.split("test").set_index("scan_id").loc[keep["scan_id"]]
    jobs = [
        (scan, {"lesion_mask": row["lesion_mask"]}, healthy, thresholds)
        for scan, (_, row) in zip(test, rows.iterrows(), strict=True)
        if row["label"] == "1" and row["site"] == "A" and voxels(row["lesion_mask"]).any()
    ]
    found = pd.DataFrame([r for part in run_in_threads(locate_scan, jobs, WORKERS, "voxels") for r in part])
    return {
        str(name): {
            "n": len(members),
            **{key: round(float(members[key].mean()), 4) for key in ("ap", "chance_ap", "auroc", "dice")},
            "found": round(float(members["found"].sum() / members["lesions"].sum()), 4),
        }
        for name, members in found.groupby("map")
    }


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def fill(readme: Path, mark: str, text: str) -> None:
    """Put a table between its marks."""
    before, rest = readme.read_text().split(f"<!-- {mark} -->\n")
    readme.write_text(f"{before}<!-- {mark} -->\n{text}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}")


def measure_run(run: Path, data_dir: Path) -> dict[str, Any]:
    """All detectors of a run."""
    data = HeadCTDataModule(prepared_of(choose_trained(run, "fanogan"), data_dir), 8)
    data.setup()
    inference = Inference(data, TRAINER)
    trained = {t.label: t for t in find_trained(run)}
    found = {}
    for label in DETECTORS:
        say(f"{run.name}: {label}")
        found[label] = measure_detector(trained[label], data, inference, run / "evaluation" / label)
    return found


def mean_of(estimates: list[dict[str, Any]]) -> str:
    """Mean over independent cohorts with its 95 % interval."""
    values = np.array([e["value"] for e in estimates])
    errors = np.array([e["ci95"][1] - e["ci95"][0] for e in estimates]) / 2
    mean, error = values.mean(), np.sqrt((errors**2).sum()) / len(errors)
    return f"{mean:.3f} [{mean - error:.3f}, {min(mean + error, 1):.3f}]"


def change(before: list[float], after: list[float]) -> str:
    """Two means."""
    return f"{np.mean(before):.2f} -> {np.mean(after):.2f}"


def fill_readme(runs: list[dict[str, Any]]) -> None:
    """All tables, from what ``measure_run`` found in each cohort."""
    of = {label: [run[label] for run in runs] for label in DETECTORS}

    def scores_of(label: str, name: str | None, key: str = "A") -> list[dict[str, Any]]:
        """A score in each cohort; None: the chosen one."""
        return [f["scores"][name or f["chosen"]][key] for f in of[label]]

    rows = [
        [
            label,
            mean_of(scores_of(label, "total")),
            mean_of(scores_of(label, None)),
            ", ".join(f["chosen"] for f in found),
            mean_of(scores_of(label, "peak")),
            mean_of([max((s["A"] for s in f["scores"].values()), key=lambda a: a["value"]) for f in found]),
            mean_of(scores_of(label, "total", "B")),
            mean_of(scores_of(label, None, "B")),
            f"{np.mean([agreement(f) for f in found]):.2f}",
        ]
        for label, found in of.items()
    ]
    head = ["detector", "own score", "chosen", "which", "`peak`", "best on the test, oracle", "B, own", "B, chosen"]
    fill(HERE / "README.md", "scores", markdown([*head, "Spearman"], rows))
    strata = [*TYPES, *next(iter(runs[0].values()))["scores"]["total"]["by_volume"]]
    rows = []
    for label in of:
        before, after = ([{**s["by_lesion"], **s["by_volume"]} for s in both] for both in whole(of[label]))
        rows.append([label, *(change([b[s] for b in before], [a[s] for a in after]) for s in strata)])
    fill(HERE / "README.md", "kinds", markdown(["detector", *strata], rows))
    shown = ("fanogan", "fanogan/encoder", "pca", "mean_volume")
    rows = []
    for name in runs[0]["pca"]["variants"]:
        found = {label: [f["variants"][name] for f in of[label]] for label in shown}
        rows.append(
            [
                name,
                *(f"{np.mean([v['A']['value'] for v in found[label]]):.3f}" for label in shown),
                *(f"{np.mean([v['B']['value'] for v in found[label]]):.3f}" for label in ("fanogan", "pca")),
                *(f"{np.mean([v['B_above_A']['value'] for v in found[label]]):.2f}" for label in ("fanogan", "pca")),
            ]
        )
    head = ["layer", *(f"{label}, A" for label in shown), "fanogan, B", "pca, B", "B above A, fanogan", "pca"]
    fill(HERE / "README.md", "layer", markdown(head, rows))
    rows = [
        [
            label,
            str(sum(f["where"]["residual"]["n"] for f in found)),
            f"{np.mean([f['where']['residual']['chance_ap'] for f in found]):.3f}",
            *(
                change([f["where"]["residual"][key] for f in found], [f["where"]["standardised"][key] for f in found])
                for key in ("ap", "auroc", "dice", "found")
            ),
        ]
        for label, found in of.items()
    ]
    head = ["detector", "scans", "chance AP", "voxel AP", "voxel AUROC", "Dice", "lesions found"]
    fill(HERE / "README.md", "where", markdown(head, rows))
    joined = list(runs[0]["pca"]["sites"])
    rows = []
    for label, found in of.items():
        sites = {n: [f["sites"][n] for f in found] for n in joined}
        by = (f"{mean_of([s['B'] for s in sites[n]])}; {mean_of([s['B_above_A'] for s in sites[n]])}" for n in joined)
        rows.append([label, mean_of([f["scores"]["total"]["B_above_A"] for f in found]), *by])
    head = ["detector", "own score: B above A", *(f"with {n} of B: AUC at B; B above A" for n in joined)]
    fill(HERE / "README.md", "sites", markdown(head, rows))


def whole(found: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Own and chosen score in each cohort."""
    return [f["scores"]["total"] for f in found], [f["scores"][f["chosen"]] for f in found]


def agreement(found: dict[str, Any]) -> float:
    """Spearman's correlation of the ranking by pasted anomalies with the one by test labels."""
    names = list(found["pasted"])
    return float(
        spearmanr([found["pasted"][n] for n in names], [found["scores"][n]["A"]["value"] for n in names]).statistic
    )


def options(what: str | None) -> argparse.Namespace:
    """Which ``runs``, and where they and their data lie."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    return parser.parse_args()


def main() -> None:
    """Measure the runs that have no file yet."""
    arguments = options(__doc__)
    for run in arguments.runs:
        path = HERE / f"{run}.json"
        if not path.exists():
            found = measure_run(arguments.runs_dir / run, arguments.data_dir)
            with written_whole(path) as beside:
                beside.write_text(json.dumps(found, indent=1) + "\n")
    fill_readme([json.loads((HERE / f"{run}.json").read_text()) for run in arguments.runs])


if __name__ == "__main__":
    main()
