"""A cohort of phantoms on disk with its manifest. Each scan has a seed of its own, whatever the order of the work."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.cohorts.base import Cohort
from anomaly3d.cohorts.phantom.faults import FAULTS
from anomaly3d.cohorts.phantom.files import Recipe, write_phantom, write_recipes
from anomaly3d.cohorts.phantom.generate import MODALITIES
from anomaly3d.cohorts.phantom.lesions import OTHERS
from anomaly3d.cohorts.phantom.postoperative import KINDS
from anomaly3d.cohorts.phantom.versions import LATEST, version_of
from anomaly3d.errors import UserError
from anomaly3d.scans.recipe import SUFFIX
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers, run_parallel

PURPOSES = {"dev": 0, "test": 1}  # seeds for design choices, and seeds that only final tables read
WITH_TWINS = ("validation", "calibration", "healthy_reference", "test")  # splits that an evaluation scores
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
    finding: str | None = None


PARTS = {
    "train": Part(1, "train", "0", "normal"),
    "validation": Part(2, "validation", "0", "normal"),
    "calibration": Part(3, "calibration", "0", "normal"),
    "healthy_reference": Part(12, "healthy_reference", "0", "normal"),
    "test_normal": Part(4, "test", "0", "normal"),
    "test_lesion": Part(5, "test", "1", "tbi", bleeds=True),
    "b_test_normal": Part(6, "test", "0", "normal", "B"),
    "b_test_lesion": Part(7, "test", "1", "tbi", "B", bleeds=True),
    "c_test_normal": Part(10, "test", "0", "normal", "C"),
    "c_test_lesion": Part(11, "test", "1", "tbi", "C", bleeds=True),
    "labelled_normal": Part(8, "labelled", "0", "normal"),
    "labelled_lesion": Part(9, "labelled", "1", "tbi", bleeds=True),
    **{k: Part(20 + i, "test", "1", "postoperative", postoperative=k) for i, k in enumerate(KINDS)},
    **{k: Part(40 + i, "test", "1", "other", finding=k) for i, k in enumerate(OTHERS)},
    **{k: Part(30 + i, "test", "", "low_quality", fault=k) for i, k in enumerate([*FAULTS, "wrong_registration"])},
}


def check_parts(counts: dict[str, int], modality: str, version: int) -> None:
    """Refuse parts that there are not, or not of this modality or version.

    Raises:
        UserError: names one.
    """
    if unknown := [name for name in counts if name not in PARTS]:
        raise UserError(f"dataset.counts: unknown part {unknown[0]!r}; there are {', '.join(PARTS)}")
    look = MODALITIES[modality]
    shown = (None, "wrong_registration", *look.findings, *look.faults, *look.postoperative)
    for name in (name for name, count in counts.items() if count):
        part = PARTS[name]
        if not {part.finding, part.fault, part.postoperative} <= {*shown}:
            raise UserError(f"dataset.counts: the phantom of modality {modality} has no {name!r}: set it to 0")
        if part.site not in look.sites(version_of(version)):
            raise UserError(
                f"dataset.counts: {name!r} is of a site that version {version} of the phantom has not on {modality}"
            )


def plan(
    counts: dict[str, int], seed: int, purpose: str = "dev", modality: str = "ct", **size: Any
) -> list[tuple[Part, Recipe]]:
    """The scans of a cohort. A modality's kinds of lesion take turns; some scans have a second one.

    Raises:
        UserError: as ``check_parts``, or an unknown purpose.
    """
    check_parts(counts, modality, size.get("version", LATEST))
    if purpose not in PURPOSES:
        raise UserError(f"dataset.purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}")
    scans, look = [], MODALITIES[modality]
    for name, part in PARTS.items():
        for i in range(counts.get(name, 0)):
            scan_seed = (PURPOSES[purpose], seed, part.code, i)
            kinds: tuple[str, ...] = (part.finding,) if part.finding else ()
            if part.bleeds:
                rng = np.random.default_rng((*scan_seed, 99))
                first = look.in_turn[i % len(look.in_turn)]
                others = [kind for kind in look.in_turn if kind != first]
                kinds = (first, str(rng.choice(others))) if rng.random() < SECOND else (first,)
            purpose_name = name.removeprefix("b_").removeprefix("c_").removeprefix("test_").removeprefix("labelled_")
            finding = "-".join(kinds) or purpose_name.replace("_", "-")
            place = "" if part.site == "A" else f"{part.site.lower()}-"
            place += "labelled-" if part.split == "labelled" else ""
            recipe = Recipe(
                f"{place}{finding}-{i:04d}",
                scan_seed,
                kinds,
                part.site,
                part.postoperative,
                part.fault,
                modality=modality,
                **size,
            )
            scans.append((part, recipe))
    return scans


class PhantomCohort(Cohort):
    """Phantoms of a seed, as many of each part as ``counts`` says.

    Args:
        matrix, slices: voxels in plane, and the usual number of slices.
        purpose: of ``PURPOSES``.
        twins: also scan every head that is scored once more without its lesions, for the control that knows them.
        version: of ``versions.VERSIONS``.
        modality: of ``generate.MODALITIES``; of one seed all show the same heads, with such findings as they can.
        keep_raw: False writes recipes in place of volumes, and whoever reads one makes the phantom.

    Raises:
        UserError: an unknown part, purpose, version or modality, or one that has no such part.
    """

    synthetic = True

    def __init__(
        self,
        name: str,
        counts: dict[str, int],
        seed: int = 0,
        purpose: str = "dev",
        matrix: int = 256,
        slices: int = 36,
        twins: bool = False,
        keep_raw: bool = True,
        version: int = LATEST,
        modality: str = "ct",
    ) -> None:
        self.name, self.keep_raw = name, keep_raw
        if modality not in MODALITIES:
            raise UserError(f"dataset.modality must be one of {', '.join(MODALITIES)}, not {modality!r}")
        scans = plan(counts, seed, purpose, modality, matrix=matrix, slices=slices, version=version)
        self.scans = [(p, replace(r, twin=twins and p.split in WITH_TWINS)) for p, r in scans]

    def key(self) -> str:
        text = json.dumps([self.name, [recipe.settings() for _, recipe in self.scans]], sort_keys=True)
        return text + ("" if self.keep_raw else " recipes")

    def manifest(self, data_dir: Path, workers: Workers) -> Path:
        path = self.place(data_dir)
        return path if path.exists() else super().manifest(data_dir, workers)  # it is written last

    def first_row(self, data_dir: Path) -> dict[str, str] | None:
        path = self.place(data_dir)
        return None if path.exists() else self.described(path.parent, self.scans[:1], 1)[0]

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        """Makes the volumes that are missing."""
        say(f"phantom cohort: {len(self.scans)} heads in {folder}")
        return pd.DataFrame(self.described(folder, self.scans, workers))

    def described(self, folder: Path, scans: list[tuple[Part, Recipe]], workers: Workers) -> list[dict[str, str]]:
        """Rows of some of the scans, whose files are made where they are missing."""
        write, what = (write_phantom, "phantom") if self.keep_raw else (write_recipes, "recipe")
        made = run_parallel(write, [(folder, recipe) for _, recipe in scans], workers, what)
        people = {person["recipe"]["scan_id"]: person for person in made}
        return [describe(folder, self.name, part, recipe, people[recipe.scan_id]) for part, recipe in scans]


def describe(folder: Path, name: str, part: Part, recipe: Recipe, person: dict[str, Any]) -> dict[str, str]:
    """The manifest's row of a scan whose files have been written; ``person`` has ``age`` and ``sex``."""

    def file(kind: str) -> str:
        paths = [folder / kind / f"{recipe.scan_id}{suffix}" for suffix in (".nii.gz", SUFFIX, ".txt")]
        return next((str(path) for path in paths if path.exists()), "")

    return {
        "scan_id": recipe.scan_id,
        "subject_id": recipe.scan_id,
        "cohort": name if part.site == "A" else f"{name}-{part.site.lower()}",
        "site": part.site,
        "image": file(recipe.modality),
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
