"""Do finer volumes find smaller bleeds? ``python -m experiments.beyond.fine runs/race-pca-1 runs/fine96-pca``

Each run is of one detector on the scans of the same cohort at another resolution. Its scans are scored where they are
not yet; ``exceedance`` is computed with smoothing and pooling over as many mm as at 64^3, and over as many voxels.
Writes ``fine.json`` and the table of ``README.md``; a run that ``fine.json`` holds is not measured again.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring import anomaly_maps
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.scan_scores import exceedance
from anomaly3d.statistics.auc import auc, compare_auc, share
from anomaly3d.statistics.conformal import threshold
from anomaly3d.system.files import written_whole
from anomaly3d.system.workers import run_in_threads
from experiments.beyond.kept import HERE, scored_maps
from experiments.scores.measure import fill, markdown

USUAL_SIDE = 64
RATE = 0.1  # of healthy calibration scans that the threshold may flag
BANDS = (0.5, 2, 10, np.inf)  # ml
WORKERS = 2


def judged(scan: ScanMaps, lesion: str, healthy: Healthy) -> tuple[float, float]:
    """``exceedance`` of a scan, and the average precision of its map's voxels in the brain, NaN without a lesion."""
    raw = scan.read()
    z = np.abs(anomaly_maps.anomaly_maps(raw, healthy)["standardised"][raw.brain])
    truth = voxels(lesion)[raw.brain] > 0 if lesion else np.zeros(0, bool)
    return exceedance(z), average_precision_score(truth, z) if truth.any() else np.nan


def measure(run: Path, data_dir: Path) -> dict[str, Any]:
    """One run: scores and voxel AP of each test scan and the threshold, in mm and in voxels of 64^3."""
    trained = choose_trained(run, None)
    data = HeadCTDataModule(prepared_of(trained, data_dir), 8)
    data.setup()
    maps = scored_maps(trained, data, run / "evaluation" / trained.label)
    healthy_rows, test = data.split("validation"), ranked(data.split("test").reset_index(drop=True))
    side = int(trained.lineage["settings"]["preprocessing"]["resolution"])
    found: dict[str, Any] = {"detector": trained.name, "side": side}
    for unit, factor in {"mm": side / USUAL_SIDE, "voxels": 1.0}.items():
        widths = {name: getattr(anomaly_maps, name) * factor for name in ("SMOOTHING", "POOLED")}
        with patch.multiple(anomaly_maps, **widths):
            healthy = Healthy.measure(maps["validation"], healthy_rows, ())
            jobs = [(scan, "", healthy) for scan in maps["calibration"]]
            jobs += [(scan, lesion, healthy) for scan, lesion in zip(maps["test"], test["lesion_mask"], strict=True)]
            values = np.array(list(run_in_threads(judged, jobs, WORKERS, f"{run.name}, {unit}")))
        count = len(maps["calibration"])
        found[unit] = {
            "level": threshold(values[:count, 0], RATE),
            "score": [float(f"{score:.6g}") for score in values[count:, 0]],
            "voxel_ap": [None if np.isnan(ap) else round(ap, 4) for ap in values[count:, 1].tolist()],
        }
    found["scans"] = {key: test[key].tolist() for key in ("scan_id", "site", "label", "lesion_ml")}
    return found


def row_of(name: str, found: dict[str, Any], unit: str, usual: dict[str, Any] | None) -> list[str]:
    """A row of the table; ``usual`` is the same detector's run at 64^3."""
    scans, own = pd.DataFrame(found["scans"]), found[unit]
    labels, scores = scans["label"].astype(int).to_numpy(), np.array(own["score"])
    at = {site: (scans["site"] == site).to_numpy() for site in "AB"}
    cells = []
    for keep in at.values():
        estimate = auc(labels[keep], scores[keep])
        cells.append(f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]")
    if usual:  # on the scans that both accepted
        others = pd.Series(usual["mm"]["score"], usual["scans"]["scan_id"]).reindex(scans["scan_id"]).to_numpy()
        both = ~np.isnan(others)
        gain = compare_auc(labels[both], scores[both], others[both])
    cells.append(f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], p {gain.p:.3f}" if usual else "")
    ml = pd.to_numeric(scans["lesion_ml"], errors="coerce").to_numpy()
    flagged = scores >= own["level"]
    cells.append(f"{flagged[labels == 0].mean():.0%}")
    for low, high in pairwise(BANDS):
        inside = (labels == 1) & (ml >= low) & (ml < high)
        hits = share(flagged[inside], scans.loc[inside, "scan_id"].to_numpy())
        cells.append(f"{hits['value']:.2f} of {hits['n']}")
    ap = np.array([a for a in own["voxel_ap"] if a is not None])
    cells.append(f"{ap.mean():.3f} of {len(ap)}")
    return [found["detector"], f"{found['side']}³", "mm" if unit == "mm" else "voxels", *cells]


def main() -> None:
    """Measure what is not in ``fine.json`` yet, and fill the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    asked = parser.parse_args()
    path = HERE / "fine.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for run in asked.runs:
        if run.name not in kept:
            kept[run.name] = measure(run, asked.data_dir)
            with written_whole(path) as beside:
                beside.write_text(json.dumps(kept) + "\n")
    usual = {found["detector"]: found for found in kept.values() if found["side"] == USUAL_SIDE}
    rows = []
    for name, found in sorted(kept.items(), key=lambda item: (item[1]["detector"], item[1]["side"])):
        for unit in ("mm", "voxels") if found["side"] != USUAL_SIDE else ("mm",):
            beside = usual.get(found["detector"]) if found["side"] != USUAL_SIDE else None
            rows.append(row_of(name, found, unit, beside))
    head = [
        "detector",
        "volumes",
        "smoothed over as many",
        "AUC, A",
        "AUC, B",
        "gain over 64³, A and B",
        "healthy flagged",
    ]
    head += ["recall 0.5 to 2 ml", "2 to 10 ml", "over 10 ml", "voxel AP"]
    fill(HERE / "README.md", "fine", markdown(head, rows))


if __name__ == "__main__":
    main()
