"""A cohort of phantoms on disk with its manifest. Each scan has a seed of its own, whatever the order of the work."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly3d.cohorts.manifest import write_manifest
from anomaly3d.cohorts.phantom.generate import write_phantom
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.parallel import run_parallel
from anomaly3d.progress import say

VERSION = 2  # raised when the same config would give other bytes
PARTS = {"train": 1, "validation": 2, "calibration": 3, "test_normal": 4, "test_lesion": 5}


def plan(counts: dict[str, int], seed: int) -> pd.DataFrame:
    """One row a scan: ``scan_id, split, label, lesions, seed``; the lesion types take turns."""
    rows = []
    for part, code in PARTS.items():
        for i in range(counts.get(part, 0)):
            lesion = TYPES[i % len(TYPES)] if part == "test_lesion" else ""
            name = {"test_normal": "healthy", "test_lesion": lesion}.get(part, part)
            rows.append((f"{name}-{i:04d}", part.split("_")[0], str(int(bool(lesion))), lesion, (seed, code, i)))
    return pd.DataFrame(rows, columns=["scan_id", "split", "label", "lesions", "seed"])


def make_cohort(
    name: str, counts: dict[str, int], seed: int, matrix: int, slices: int, data_dir: Path, workers: int
) -> Path:
    """Write what is missing of a phantom cohort and return the path of its manifest."""
    recipe: dict[str, Any] = dict(counts=counts, seed=seed, matrix=matrix, slices=slices, version=VERSION)
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    folder = data_dir / "raw" / f"{name}-{digest}"
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    table = plan(counts, seed)
    say(f"phantom cohort: {len(table)} head CTs in {folder}")
    jobs = [
        (folder, row.scan_id, row.seed, row.lesions or None, matrix, slices) for row in table.itertuples(index=False)
    ]
    for _ in run_parallel(write_phantom, jobs, workers, "phantom"):
        pass
    truths = [json.loads((folder / "truth" / f"{s}.json").read_text()) for s in table["scan_id"]]
    table = table.assign(
        subject_id=table["scan_id"],
        cohort=name,
        site="A",
        image=[str(folder / "ct" / f"{s}.nii.gz") for s in table["scan_id"]],
        brain_mask="",
        transform_fault="",
        lesion_mask=[
            str(folder / "lesion" / f"{s}.nii.gz") if lesion else ""
            for s, lesion in zip(table["scan_id"], table["lesions"], strict=True)
        ],
        group=table["label"].map({"0": "normal", "1": "tbi"}),
        age=[t["age"] for t in truths],
        sex=[t["sex"] for t in truths],
    )
    write_manifest(table, manifest)
    return manifest
