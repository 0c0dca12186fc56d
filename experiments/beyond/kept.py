"""What the measurements of this folder share: a score of one scan, and figures that are kept by detector."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.runs.folder import Trained
from anomaly3d.scoring import scan_scores
from anomaly3d.scoring.anomaly_maps import Healthy, RawMaps, ScanMaps, anomaly_maps, maps_of
from anomaly3d.scoring.inference import Inference
from anomaly3d.system.files import written_whole
from experiments.scores.measure import TRAINER

HERE = Path(__file__).parent


def exceedance(raw: RawMaps, healthy: Healthy) -> float:
    """Of one scan."""
    return scan_scores.exceedance(anomaly_maps(raw, healthy)["standardised"][raw.brain])


def scored_maps(trained: Trained, data: HeadCTDataModule, out: Path) -> dict[str, list[ScanMaps]]:
    """By split the maps of validation, calibration and ranked test scans, which are scored where they are not yet."""
    inference, found = Inference(data, TRAINER), {}
    for split in ("validation", "calibration", "test"):
        rows, folder = data.split(split), out if split == "test" else out / split
        inference.once(trained, split, folder, volumes=True)
        found[split] = maps_of(ranked(rows.reset_index(drop=True)) if split == "test" else rows, folder)
    return found


def measured(what: str | None, name: str, measure: Callable[[Path, str, Path], dict[str, Any]]) -> dict[str, Any]:
    """By detector what ``measure`` gives of each DETECTOR=RUN that was typed and is not in the file ``name`` yet, and
    all that is there."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("runs", nargs="*", help="DETECTOR=RUN")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    asked = parser.parse_args()
    path = HERE / name
    kept = json.loads(path.read_text()) if path.exists() else {}
    for detector, run in (word.split("=") for word in asked.runs):
        if detector not in kept:
            kept[detector] = measure(Path(run), detector, asked.data_dir)
            with written_whole(path) as beside:
                beside.write_text(json.dumps(kept, indent=1) + "\n")
    return kept
