"""What the measurements of this folder share: a score of one scan, and figures that are kept by detector."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from anomaly3d.scoring.anomaly_maps import Healthy, RawMaps, anomaly_maps
from anomaly3d.scoring.scan_scores import RARE
from anomaly3d.system.files import written_whole

HERE = Path(__file__).parent


def exceedance(raw: RawMaps, healthy: Healthy) -> float:
    """Of one scan."""
    return float(np.mean((np.abs(anomaly_maps(raw, healthy)["standardised"][raw.brain]) - RARE).clip(min=0)))


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
