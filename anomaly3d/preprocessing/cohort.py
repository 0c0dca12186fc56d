"""All scans of a manifest through the seven steps, in parallel, into ``data/COHORT/HASH``."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly3d.cohorts.manifest import PATHS, read_manifest, write_manifest
from anomaly3d.files import remove_leftovers, written_whole
from anomaly3d.parallel import run_parallel
from anomaly3d.preprocessing import template
from anomaly3d.preprocessing.pipeline import VERSION, Settings, Sources, Verdict, prepare_scan
from anomaly3d.progress import say

DESCRIPTION = (
    "scan_id",
    "subject_id",
    "cohort",
    "split",
    "label",
    "group",
    "lesions",
)  # what quality.csv repeats of the manifest


@dataclass(frozen=True)
class PreparedCohort:
    """Where prepared volumes lie, and what became of each scan."""

    folder: Path
    verdicts: list[Verdict]

    @property
    def manifest(self) -> Path:
        """Manifest of the accepted scans."""
        return self.folder / "manifest.csv"

    def with_verdict(self, name: str) -> list[Verdict]:
        """The scans with this verdict."""
        return [v for v in self.verdicts if v.verdict == name]


def settings_hash(settings: Settings) -> str:
    """Eight hex digits of everything that decides what a prepared volume is."""
    recipe = json.dumps({**asdict(settings), "version": VERSION, "template": template.NAME}, sort_keys=True)
    return hashlib.sha256(recipe.encode()).hexdigest()[:8]


def cohort_name(manifest: Path, data_dir: Path) -> str:
    """The folder of a cohort: unique, so that two studies of one name do not share prepared scans.

    Manifests that this program wrote lie in a folder with a unique name; others get a digest of their place.
    """
    place = manifest.resolve()
    if place.is_relative_to((data_dir / "raw").resolve()):
        return place.parent.name
    return f"{place.parent.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


def prepare_cohort(manifest: Path, settings: Settings, data_dir: Path, workers: int) -> PreparedCohort:
    """Prepare what is missing and write ``manifest.csv`` (accepted scans) and ``quality.csv`` (all of them).

    Test scans that the manifest itself calls ``low_quality`` stay in although quality control rejects them.

    Raises:
        UserError: the manifest has problems (before any work), or the disk is full.
    """
    table = read_manifest(manifest)
    folder = data_dir / cohort_name(manifest, data_dir) / settings_hash(settings)
    remove_leftovers(folder)
    template_path = template.build_template(data_dir)
    jobs: list[tuple[Any, ...]] = [
        (Sources(**{str(k): v for k, v in row.items()}), folder, template_path, settings)
        for row in table[[field.name for field in fields(Sources)]].to_dict("records")
    ]
    missing = sum(not (folder / "verdicts" / f"{scan_id}.json").exists() for scan_id in table["scan_id"])
    if missing:
        say(f"prepare: {missing} of {len(jobs)} scans to do, into {folder}")
    done: Iterator[Verdict] = (
        run_parallel(prepare_scan, jobs, workers, "prepare") if missing else (prepare_scan(*job) for job in jobs)
    )
    found = {v.scan_id: v for v in done}
    verdicts = [found[scan_id] for scan_id in table["scan_id"]]
    rows = [{**asdict(v), **(asdict(v.quality) if v.quality else {})} for v in verdicts]
    quality = table[[*DESCRIPTION]].merge(pd.DataFrame(rows).drop(columns=["quality", "source"]), on="scan_id")
    with written_whole(folder / "quality.csv") as path:
        quality.to_csv(path, index=False)
    verdict = pd.Series([v.verdict for v in verdicts], index=table.index)
    known = (table["split"] == "test") & (table["group"] == "low_quality")  # what Fig. 7 of the paper scores on purpose
    accepted = table[(verdict == "accepted") | (verdict == "rejected") & known].copy()
    for kind in PATHS:  # transform_fault has no file here: it has been applied
        made = [folder / kind / f"{s}.nii.gz" for s in accepted["scan_id"]]
        accepted[kind] = [str(p) if p.exists() else "" for p in made]
    ml = pd.Series([v.lesion_ml for v in verdicts], index=table.index)[accepted.index]
    accepted["lesion_ml"] = [f"{x:.3f}" if pd.notna(x) else "" for x in ml]
    write_manifest(accepted, folder / "manifest.csv")
    return PreparedCohort(folder, verdicts)
