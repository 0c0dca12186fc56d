"""Where a trained phase comes from: settings, data, parent and code, written beside its model."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

import anomaly3d
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.folder import PhaseFolder
from anomaly3d.system.files import sha256

SHARED = ("model", "preprocessing", "dataset")  # settings that the phases of a detector have in common
LEARNED = ("train", "validation", "labelled")  # splits that training reads
WHERE = ("dataset.root", "dataset.scans", "dataset.manifest")  # a study may move: its scans are compared, not its place


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Dotted keys whose values differ, or that only one side has; but for the scans' place."""
    left, right = flatten(a), flatten(b)
    return sorted(k for k in left.keys() | right.keys() if k not in WHERE and left.get(k) != right.get(k))


def find_parent(
    phases: list[str], phase: str, run: Path, override: str | None, settings: dict[str, Any]
) -> Path | None:
    """The model that a phase starts from, or None for the first phase.

    Args:
        phases: of the detector, in their order.
        run: the detector's folder in the run.
        override: folder of another phase to start from.

    Raises:
        UserError: it is missing or unfinished, or its networks, data or preprocessing are others; names the keys.
    """
    before = phases[: phases.index(phase)]
    if not before and not override:
        return None
    folder = PhaseFolder(Path(override) if override else run / before[-1])
    lineage = folder.finished()
    if lineage is None:
        name = before[-1] if before else phases[0]
        raise UserError(
            f"phase {phase} starts from a finished phase {name}, and {folder.path} holds none: run "
            f"'python -m anomaly3d.train +phase={name} run={run.parent.name}' first, or name another folder with "
            "parent=..."
        )
    keys = differing({k: lineage["settings"][k] for k in SHARED}, {k: settings[k] for k in SHARED})
    if keys:
        raise UserError(
            f"{folder.path} was trained with other values of {', '.join(keys)}: give the same ones, or another "
            "parent=..., or train it anew with overwrite=true"
        )
    return folder.model


def can_resume(folder: PhaseFolder, settings: dict[str, Any], parent: Path | None) -> bool | None:
    """What to do with a phase's folder: True resume, False begin, None nothing because it is finished.

    Raises:
        UserError: it was trained with other settings or from another parent, or its checkpoint is damaged.
    """
    lineage = folder.read()
    if lineage is None or not folder.learned():
        return False
    keys = differing(lineage["settings"], settings)
    more = keys == ["phase.steps"] and settings["phase"]["steps"] > lineage["settings"]["phase"]["steps"]
    if keys and not more:
        raise UserError(
            f"{folder.path} holds a phase trained with other values of {', '.join(keys)}: choose another name with "
            "run=..., or replace it with overwrite=true"
        )
    if parent and sha256(parent) != lineage["parent_sha256"]:
        raise UserError(
            f"{parent} is not the one that {folder.path} was trained from: train it anew with overwrite=true"
        )
    if lineage["finished"] and not more and folder.model.exists():
        return None
    whole = folder.whole_checkpoint()
    if folder.last_checkpoint.exists() and whole is None:
        raise UserError(
            f"{folder.last_checkpoint} is damaged or cut short, and the phase cannot go on from it: put another "
            "checkpoint in its place, or train the phase anew with overwrite=true"
        )
    return whole is not None


def is_replacing(folder: PhaseFolder, settings: dict[str, Any], parent: Path | None) -> bool:
    """Whether a phase's folder holds what ``overwrite=true`` began with the same settings and did not end."""
    lineage = folder.read()
    if lineage is None or lineage["finished"] or not lineage.get("replaces"):
        return False
    return is_as_wanted(lineage, settings, parent) and folder.whole_checkpoint() is not None


def is_as_wanted(lineage: dict[str, Any], settings: dict[str, Any], parent: Path | None) -> bool:
    """Whether a phase was trained, or begun, with these settings and this parent."""
    same_parent = lineage.get("parent_sha256") == (sha256(parent) if parent else None)
    return same_parent and not differing(lineage.get("settings", {}), settings)


def split_hash(table: pd.DataFrame) -> str:
    """Twelve hex digits of which scans of whom are in which split, but for the test split: nothing learns from it."""
    rows = table.loc[table["split"] != "test", ["split", "subject_id", "scan_id"]]
    return hashlib.sha256(repr(sorted(rows.itertuples(index=False, name=None))).encode()).hexdigest()[:12]


def voxels_hash(prepared: PreparedCohort) -> str | None:
    """Twelve hex digits of what the scans show that networks learn from or are chosen by, whatever file they are in.

    None where that is not known of all.
    """
    scans = prepared.table.loc[prepared.table["split"].isin(LEARNED), "scan_id"]
    content = prepared.quality.reindex(columns=["scan_id", "content"]).fillna("").set_index("scan_id")["content"]
    rows = sorted((scan_id, content.get(scan_id, "")) for scan_id in scans)
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:12] if all(shown for _, shown in rows) else None


def data_hashes(prepared: PreparedCohort) -> dict[str, str | None]:
    """What a lineage keeps of prepared data, to know them again."""
    return {"split_hash": split_hash(prepared.table), "voxels_hash": voxels_hash(prepared)}


def same_voxels(lineage: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two lineages, or ``data_hashes``, are of the same voxels as far as both know: earlier versions kept no
    ``voxels_hash``."""
    return None in (known := {of.get("voxels_hash") for of in (lineage, other)}) or len(known) == 1


def same_data(lineage: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether they are of the same scans in the same splits, which show the same."""
    return lineage["split_hash"] == other["split_hash"] and same_voxels(lineage, other)


def require_same_data(lineage: dict[str, Any] | None, prepared: PreparedCohort, what: Path) -> None:
    """Refuse prepared data other than those of a lineage (None: nothing to compare).

    Raises:
        UserError: scans were added, removed, moved between splits, or replaced under their names since.
    """
    if lineage and lineage["split_hash"] != split_hash(prepared.table):
        raise UserError(
            f"the scans in {prepared.folder} or their splits are not those that {what} was trained with: restore the "
            "manifest, or train all phases anew with overwrite=true"
        )
    if lineage and not same_voxels(lineage, data_hashes(prepared)):
        raise UserError(
            f"scans in {prepared.folder} were replaced by others under the same names since {what} was trained: "
            "restore them and prepare again, or train all phases anew with overwrite=true"
        )


def describe(settings: dict[str, Any], prepared: PreparedCohort, parent: Path | None) -> dict[str, Any]:
    """The lineage of a phase that begins now."""
    text = json.dumps(settings, sort_keys=True)
    return {
        "finished": False,
        "settings": settings,
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:12],
        "version": anomaly3d.__version__,
        "git_commit": git_commit(),
        "cohort": prepared.folder.parent.name,
        "prepared": prepared.folder.name,
        **data_hashes(prepared),
        "parent_sha256": sha256(parent) if parent else None,
    }


def git_commit(package: Path = Path(anomaly3d.__file__).parent) -> str | None:
    """The commit of the program's own checkout with a plus for uncommitted changes, None where it has none.

    A package in an environment may lie inside of somebody else's repository, which does not track it.
    """

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=package, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
