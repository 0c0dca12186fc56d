"""Where a trained phase comes from: settings, data, parent and code, written beside its weights."""

import csv
import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly3d.errors import UserError
from anomaly3d.files import sha256, written_whole

ORDER = ("gan", "encoder", "finetune")
PARENT = {"gan": None, "encoder": "gan", "finetune": "encoder"}


@dataclass(frozen=True)
class PhaseFolder:
    """``runs/NAME/PHASE`` and the files in it."""

    path: Path

    @property
    def model(self) -> Path:
        """Networks of a finished phase."""
        return self.path / "model.pt"

    @property
    def last_checkpoint(self) -> Path:
        """State of the trainer at the end of the last epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    def read(self) -> dict[str, Any] | None:
        """The lineage, or None where the phase never began.

        Raises:
            UserError: the file is not what this program writes.
        """
        path = self.path / "lineage.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged: remove {self.path} and train the phase again") from error

    def write(self, lineage: dict[str, Any]) -> None:
        """Replace the lineage."""
        with written_whole(self.path / "lineage.json") as path:
            path.write_text(json.dumps(lineage, indent=1))


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
    """Dotted keys whose values differ, or that only one side has."""
    left, right = flatten(a), flatten(b)
    return sorted(k for k in left.keys() | right.keys() if left.get(k) != right.get(k))


def find_parent(phase: str, run: Path, override: str | None, settings: dict[str, Any]) -> Path | None:
    """The model a phase starts from, or None for the first phase.

    Raises:
        UserError: it is missing or unfinished, or its networks, data or preprocessing are others; names the keys.
    """
    parent = PARENT[phase]
    if parent is None and not override:
        return None
    folder = PhaseFolder(Path(override) if override else run / str(parent))
    lineage = folder.read()
    if lineage is None or not lineage["finished"] or not folder.model.exists():
        raise UserError(
            f"phase {phase} starts from a finished phase {parent or 'gan'}, and {folder.path} holds none: run "
            f"'python -m anomaly3d.train +phase={parent or 'gan'} run={run.name}' first, "
            "or name another folder with parent=..."
        )
    shared = ("model", "preprocessing", "dataset")
    keys = differing({k: lineage["settings"][k] for k in shared}, {k: settings[k] for k in shared})
    if keys:
        raise UserError(
            f"{folder.path} was trained with other values of {', '.join(keys)}: give the same ones, or another "
            "parent=..., or train it anew with overwrite=true"
        )
    return folder.model


def can_resume(folder: PhaseFolder, settings: dict[str, Any], parent: Path | None) -> bool | None:
    """What to do with a phase's folder: True resume, False begin, None nothing because it is finished.

    Raises:
        UserError: it was trained with other settings or from another parent.
    """
    lineage = folder.read()
    if lineage is None:
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
    return folder.last_checkpoint.exists()


def split_hash(prepared: Path) -> str:
    """Twelve hex digits of which scans of whom are in which split, but for the test split: nothing learns from it."""
    with (prepared / "manifest.csv").open(newline="") as file:
        rows = [(r["split"], r["subject_id"], r["scan_id"]) for r in csv.DictReader(file) if r["split"] != "test"]
    return hashlib.sha256(repr(sorted(rows)).encode()).hexdigest()[:12]


def require_same_data(lineage: dict[str, Any] | None, prepared: Path, what: Path) -> None:
    """Refuse prepared data other than those of a lineage (None: nothing to compare).

    Raises:
        UserError: scans were added, removed, or moved between splits since.
    """
    if lineage and lineage["split_hash"] != split_hash(prepared):
        raise UserError(
            f"the scans in {prepared} or their splits are not those that {what} was trained with: restore the "
            "manifest, or train all phases anew with overwrite=true"
        )


def describe(settings: dict[str, Any], prepared: Path, parent: Path | None) -> dict[str, Any]:
    """The lineage of a phase that begins now."""
    text = json.dumps(settings, sort_keys=True)
    return {
        "finished": False,
        "settings": settings,
        "config_hash": hashlib.sha256(text.encode()).hexdigest()[:12],
        "git_commit": git_commit(),
        "cohort": prepared.parent.name,
        "prepared": prepared.name,
        "split_hash": split_hash(prepared),
        "parent_sha256": sha256(parent) if parent else None,
    }


def git_commit() -> str | None:
    """The commit of the program's own checkout with a plus for uncommitted changes, None outside of git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
