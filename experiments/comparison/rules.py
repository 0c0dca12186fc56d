"""3D against 2D f-AnoGAN by the paper's rule and by a fair one.

``python -m experiments.comparison.rules runs/NAME`` reads the scores of an evaluated run that holds both, and writes
``rules.json`` and, with the slice of each scan, ``rules.csv`` into its ``evaluation``.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from anomaly3d.detectors.fanogan_2d import FAnoGAN2D
from anomaly3d.evaluation.comparison import find_scores
from anomaly3d.evaluation.metrics import auc_of, compare
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring.inference import prepared_of

VOLUMES, SLICES = "fanogan", "fanogan_2d"


def with_fate(table: pd.DataFrame, drawn: Mapping[str, int], lesions: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """``table`` with the ``drawn`` slice of each scan, and ``left_out``: why the paper's rule leaves it out, if so.

    Args:
        drawn: place along the last axis of the prepared grid, by ``scan_id``.
        lesions: masks ``(D, H, W)`` on that grid by ``scan_id``, of the abnormal scans that have one.
    """

    def fate(scan_id: str, label: str) -> str:
        if label == "0":
            return ""
        if scan_id not in lesions:
            return "no mask"
        return "" if lesions[scan_id][..., drawn[scan_id]].any() else "lesion misses the slice"

    fates = [fate(scan_id, label) for scan_id, label in zip(table["scan_id"], table["label"], strict=True)]
    return table.assign(drawn=[drawn[scan_id] for scan_id in table["scan_id"]], left_out=fates)


def by_rules(table: pd.DataFrame) -> dict[str, Any]:
    """AUCs with n and interval by both rules, and the paired difference of the model of volumes and each other score.

    ``paper``: of the model of slices the score of the one that was drawn, of the model of volumes its A(x); abnormal
    scans whose lesion misses that slice, or of which that is not known, are left out for both. ``fair``: every scan,
    and of the model of slices the mean and the maximum over those that it sees.

    Args:
        table: of ``with_fate``; ``label, subject_id``, and the scores ``volumes``, ``slice``, ``mean``, ``maximum``.
    """

    def of(rows: pd.DataFrame, *others: str) -> dict[str, Any]:
        return {
            "auc": {name: auc_of(rows, name).as_json() for name in ("volumes", *others)},
            "volumes_minus": compare(rows, {name: rows[name] for name in others}, "volumes"),
        }

    left_out = table.loc[table["left_out"] != "", "left_out"].value_counts().to_dict()
    paper = of(table[table["left_out"] == ""], "slice")
    return {"paper": {**paper, "left_out": left_out}, "fair": of(table, "mean", "maximum")}


def of_run(run: Path, data_dir: Path) -> pd.DataFrame:
    """What ``by_rules`` takes, of an evaluated run."""
    of_volumes, of_slices = (find_scores(run.parent, f"{run.name}/{name}") for name in (VOLUMES, SLICES))
    table = of_volumes[["scan_id", "subject_id", "cohort", "label"]].assign(
        volumes=of_volumes["total"],
        mean=of_slices["total"],
        maximum=of_slices["maximum"],
        slice=of_slices["slice"],
    )
    trained = choose_trained(run, SLICES)
    detector, rows = trained.load(), prepared_of(trained, data_dir).table.set_index("scan_id").loc[table["scan_id"]]
    assert isinstance(detector, FAnoGAN2D)
    drawn = {
        name: int(detector.drawn(torch.from_numpy(voxels(path))[None, None])) for name, path in rows["image"].items()
    }
    lesions = {name: voxels(path) > 0 for name, path in rows["lesion_mask"].items() if path}
    return with_fate(table.reset_index(drop=True), drawn, lesions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    arguments = parser.parse_args()
    table = of_run(arguments.run, arguments.data_dir)
    found = by_rules(table)
    table.to_csv(arguments.run / "evaluation" / "rules.csv", index=False)
    (arguments.run / "evaluation" / "rules.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
