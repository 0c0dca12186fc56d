"""A cohort of phantoms on disk with its manifest. Each scan has a seed of its own, whatever the order of the work."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.cohorts.manifest import write_manifest
from anomaly3d.cohorts.phantom.faults import FAULTS
from anomaly3d.cohorts.phantom.files import RECIPE_SUFFIX, Recipe, write_phantom, write_recipe
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.cohorts.phantom.postoperative import KINDS
from anomaly3d.errors import UserError
from anomaly3d.parallel import run_parallel
from anomaly3d.progress import say

VERSION = 3  # raised when the same config would give other bytes
PURPOSES = {"dev": 0, "test": 1}  # seeds for design choices, and seeds that only final tables read
SECOND = 0.3  # share of abnormal scans with two kinds of bleed


@dataclass(frozen=True)
class Part:
    """One purpose of scans in a cohort; ``code`` keeps the seeds of parts apart."""

    code: int
    split: str
    label: str
    group: str
    site: str = "A"
    bleeds: bool = False
    postoperative: str | None = None
    fault: str | None = None


PARTS = {
    "train": Part(1, "train", "0", "normal"),
    "validation": Part(2, "validation", "0", "normal"),
    "calibration": Part(3, "calibration", "0", "normal"),
    "test_normal": Part(4, "test", "0", "normal"),
    "test_lesion": Part(5, "test", "1", "tbi", bleeds=True),
    "b_test_normal": Part(6, "test", "0", "normal", "B"),
    "b_test_lesion": Part(7, "test", "1", "tbi", "B", bleeds=True),
    "labelled_normal": Part(8, "labelled", "0", "normal"),
    "labelled_lesion": Part(9, "labelled", "1", "tbi", bleeds=True),
    **{k: Part(20 + i, "test", "1", "postoperative", postoperative=k) for i, k in enumerate(KINDS)},
    **{k: Part(30 + i, "test", "", "low_quality", fault=k) for i, k in enumerate([*FAULTS, "wrong_registration"])},
}


def plan(counts: dict[str, int], seed: int, purpose: str = "dev", **size: Any) -> list[tuple[Part, Recipe]]:
    """The scans of a cohort. Kinds of bleed take turns; some scans have a second one.

    Raises:
        UserError: an unknown part or purpose.
    """
    if unknown := [name for name in counts if name not in PARTS]:
        raise UserError(f"dataset.counts: unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    if purpose not in PURPOSES:
        raise UserError(f"dataset.purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}")
    scans = []
    for name, part in PARTS.items():
        for i in range(counts.get(name, 0)):
            scan_seed = (PURPOSES[purpose], seed, part.code, i)
            kinds: tuple[str, ...] = ()
            if part.bleeds:
                rng = np.random.default_rng((*scan_seed, 99))
                first = TYPES[i % len(TYPES)]
                others = [kind for kind in TYPES if kind != first]
                kinds = (first, str(rng.choice(others))) if rng.random() < SECOND else (first,)
            purpose_name = name.removeprefix("b_").removeprefix("test_").removeprefix("labelled_")
            finding = "-".join(kinds) or purpose_name.replace("_", "-")
            place = {"B": "b-", "A": ""}[part.site] + ("labelled-" if part.split == "labelled" else "")
            recipe = Recipe(
                f"{place}{finding}-{i:04d}", scan_seed, kinds, part.site, part.postoperative, part.fault, **size
            )
            scans.append((part, recipe))
    return scans


def make_cohort(
    name: str,
    counts: dict[str, int],
    seed: int,
    matrix: int,
    slices: int,
    data_dir: Path,
    workers: int,
    purpose: str = "dev",
    twins: bool = False,
    keep_raw: bool = True,
) -> Path:
    """Write what is missing of a phantom cohort and return the path of its manifest.

    Args:
        twins: also scan every test head once more without its lesions, for the control that knows them.
        keep_raw: False writes recipes in place of volumes, and whoever reads one makes the phantom.
    """
    scans = plan(counts, seed, purpose, matrix=matrix, slices=slices)
    if twins:
        scans = [(p, Recipe(**{**vars(r), "twin": p.split == "test"})) for p, r in scans]
    text = json.dumps([VERSION, name, [asdict(recipe) for _, recipe in scans]], sort_keys=True)
    text += "" if keep_raw else " recipes"
    folder = data_dir / "raw" / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    manifest = folder / "manifest.csv"
    if manifest.exists():
        return manifest
    say(f"phantom cohort: {len(scans)} head CTs in {folder}")
    rows = []
    if keep_raw:
        for _ in run_parallel(write_phantom, [(folder, recipe) for _, recipe in scans], workers, "phantom"):
            pass
    for part, recipe in scans:
        person = write_phantom(folder, recipe) if keep_raw else write_recipe(folder, recipe)
        rows.append(describe(folder, name, part, recipe, person))
    write_manifest(pd.DataFrame(rows), manifest)
    return manifest


def describe(folder: Path, name: str, part: Part, recipe: Recipe, person: dict[str, Any]) -> dict[str, str]:
    """The manifest's row of a scan whose files have been written; ``person`` has ``age`` and ``sex``."""

    def file(kind: str) -> str:
        paths = [folder / kind / f"{recipe.scan_id}{suffix}" for suffix in (".nii.gz", RECIPE_SUFFIX, ".txt")]
        return next((str(path) for path in paths if path.exists()), "")

    return {
        "scan_id": recipe.scan_id,
        "subject_id": recipe.scan_id,
        "cohort": name if part.site == "A" else f"{name}-{part.site.lower()}",
        "site": part.site,
        "image": file("ct"),
        "brain_mask": "",
        "lesion_mask": file("lesion"),
        "mass_effect_mask": file("mass_effect"),
        "twin": file("twin"),
        "transform_fault": file("transform_fault"),
        "label": part.label,
        "lesions": ";".join(recipe.lesions) or recipe.postoperative or recipe.fault or "",
        "group": part.group,
        "age": str(person["age"]),
        "sex": person["sex"],
        "split": part.split,
    }
