"""What became of a scan, kept beside its prepared files; found again wherever the same files now lie."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from anomaly3d.scans.detached import voxel_files
from anomaly3d.scans.recipe import is_recipe, listed_files
from anomaly3d.system.files import sha256, visible, written_whole
from anomaly3d.system.progress import say


@dataclass(frozen=True)
class Sources:
    """The files of one scan as the manifest names them; an empty string for none."""

    scan_id: str
    image: str
    brain_mask: str = ""
    lesion_mask: str = ""
    mass_effect_mask: str = ""
    twin: str = ""
    transform_fault: str = ""
    segmentation: str = ""

    @classmethod
    def of(cls, row: dict[Any, Any]) -> "Sources":
        """From a row of a manifest, which may lack the columns of what there is not."""
        return cls(**{name: row.get(name, "") for name in cls.__dataclass_fields__})

    def paths(self) -> dict[str, Path]:
        """Those that there are, by what they are."""
        return {name: Path(path) for name, path in vars(self).items() if path and name != "scan_id"}

    def fingerprint(self, out: Path) -> str:
        """Places, as seen from ``out``, sizes and modification times, to notice that a file was replaced, or is now
        something else."""
        return " ".join(f"{name}:{stamp(path, out)}" for name, path in self.paths().items())

    def digest(self) -> str:
        """SHA-256 of all bytes, to know the same files in another place."""
        found = hashlib.sha256()
        for name, path in self.paths().items():
            found.update(name.encode())
            for file in files_behind(path):
                found.update(sha256(file).encode())
            found.update(b"|")
        return found.hexdigest()


def files_behind(path: Path) -> list[Path]:
    """What is read for a path of a manifest: the file, and those that hold its voxels where it is a header alone; the
    files of a folder, or those that a recipe lists."""
    if path.is_dir():
        return [folder / name for folder, names in visible(path) for name in names]
    listed = listed_files(path) if is_recipe(path) and path.exists() else []
    return listed or [path, *voxel_files(path)]


def stamp(path: Path, out: Path) -> str:
    """A digest of where the files behind a path lie, of their sizes and of when each was changed."""
    files = [(file, file.stat()) for file in files_behind(path) if file.exists()]
    told = "\n".join(f"{seen_from(out, file)} {now.st_size} {now.st_mtime_ns}" for file, now in files)
    return hashlib.sha256(told.encode(errors="surrogateescape")).hexdigest()[:16]


def seen_from(out: Path, file: Path) -> str:
    """A path that stays when raw scans and prepared ones are moved together."""
    try:
        return os.path.relpath(file, out)
    except ValueError:  # on another drive
        return str(file)


@dataclass(frozen=True)
class Outcome:
    """What became of one scan, kept as ``outcomes/ID.json``.

    ``unreadable`` is the reason why nothing could be prepared, else empty; ``source`` is the files' fingerprint;
    ``lesion_ml`` and ``segmentation_ml`` the volumes of these masks on their own grids; ``read_as`` which series of a
    study was read, where there was a choice; ``content`` a digest of the scan's voxels, the same for copies under any
    name or format; ``files`` the SHA-256 of each prepared file by kind, of earlier versions its bytes; ``digest``
    that of the sources.
    """

    scan_id: str
    unreadable: str
    quality: dict[str, float]
    source: str
    lesion_ml: float | None = None
    read_as: str = ""
    content: str = ""
    files: dict[str, str | int] = field(default_factory=dict)
    digest: str = ""
    segmentation_ml: float | None = None

    def damaged(self, out: Path) -> list[Path]:
        """Prepared files that are no longer there, or not as they were written."""
        return [
            path for kind, kept in self.files.items() if not same(path := prepared_file(out, kind, self.scan_id), kept)
        ]


def same(path: Path, kept: str | int) -> bool:
    """Whether a file has the SHA-256, or the size, that was kept of it."""
    return path.exists() and kept == (path.stat().st_size if isinstance(kept, int) else sha256(path))


def prepared_file(out: Path, kind: str, scan_id: str) -> Path:
    """The file of a prepared volume, or of the ``transform``."""
    return out / kind / (f"{scan_id}.json" if kind == "transform" else f"{scan_id}.nii.gz")


def outcome_file(out: Path, scan_id: str) -> Path:
    """Where the outcome of a scan is kept."""
    return out / "outcomes" / f"{scan_id}.json"


def stored_outcome(out: Path, scan_id: str) -> Outcome | None:
    """What is kept of a scan."""
    try:
        return Outcome(**json.loads(outcome_file(out, scan_id).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # never begun, or damaged
        return None


def finished(sources: Sources, out: Path) -> Outcome | None:
    """The outcome of a scan that was prepared from these very files, if what was prepared is still the same."""
    stored = stored_outcome(out, sources.scan_id)
    if stored is None or stored.source != sources.fingerprint(out):
        return None
    damaged = stored.damaged(out)
    for path in damaged:
        say(f"{path} is not as it was prepared: it is made again")
    return None if damaged else stored


def adopted(sources: Sources, out: Path) -> Outcome | None:
    """The outcome of a scan whose files, byte for byte, were prepared before they were moved or copied; it is then
    here too."""
    places = [folder for folder in out.parents[1].glob(f"*/{out.name}") if folder.is_dir()]
    candidates = [(f, o) for f in places if (o := stored_outcome(f, sources.scan_id)) and o.digest]
    digest = sources.digest() if candidates else ""
    for folder, stored in candidates:
        if stored.digest != digest or stored.damaged(folder):
            continue
        if folder != out:
            files = [prepared_file(folder, kind, sources.scan_id) for kind in stored.files]
            for file in (*files, folder / "preview" / f"{sources.scan_id}.png"):
                if file.exists():
                    with written_whole(out / file.relative_to(folder)) as beside:
                        shutil.copyfile(file, beside)  # with today's date, as what was made of others is older
        return keep(replace(stored, source=sources.fingerprint(out)), out)
    return None


def keep(outcome: Outcome, out: Path) -> Outcome:
    """Write an outcome, after all else: where it is, its scan is done."""
    with written_whole(outcome_file(out, outcome.scan_id)) as path:
        path.write_text(json.dumps(asdict(outcome), indent=1))
    return outcome
