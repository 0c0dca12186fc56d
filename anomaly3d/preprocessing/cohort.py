"""All scans of a cohort through its preprocessor, in parallel, into ``data/COHORT/HASH``; and reading them back.

What decides a prepared volume is in the hash. Quality limits are not: numbers are kept, and judged whenever they are
read, so that another limit prepares nothing again.
"""

import hashlib
import json
import shutil
import traceback
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from threadpoolctl import threadpool_limits

from anomaly3d.cohorts.base import Cohort
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.preprocessing.base import Companions, Prepared, Preprocessor
from anomaly3d.scans.manifest import PATHS, SPLITS, TRUTH, read_manifest, write_manifest
from anomaly3d.scans.nifti import save_volume
from anomaly3d.scans.readers import read_mask
from anomaly3d.scans.recipe import is_recipe, listed_files
from anomaly3d.scans.volume import Volume
from anomaly3d.system.files import mark_output, remove_leftovers, sha256, visible, written_whole
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers, disk_error, run_parallel

LONGEST = 900.0  # seconds for one scan
DESCRIPTION = ["scan_id", "subject_id", "cohort", "split", "label", "group", "lesions"]  # quality.csv repeats them
TEXT = [*DESCRIPTION, "verdict", "reasons", "read_as", "content"]  # the other columns of quality.csv are numbers


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

    @classmethod
    def of(cls, row: dict[Any, Any]) -> "Sources":
        """From a row of a manifest."""
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})

    def paths(self) -> list[Path]:
        """Those that there are."""
        return [Path(path) for name, path in vars(self).items() if path and name != "scan_id"]

    def fingerprint(self) -> str:
        """Sizes and modification times, to notice that a file was replaced."""
        return " ".join(map(stamp, self.paths()))

    def digest(self) -> str:
        """SHA-256 of all bytes, to know the same files in another place."""
        found = hashlib.sha256()
        for path in self.paths():
            for file in files_behind(path):
                found.update(sha256(file).encode())
            found.update(b"|")
        return found.hexdigest()


def files_behind(path: Path) -> list[Path]:
    """What is read for a path of a manifest: the file, the files of a folder, or those that a recipe lists."""
    if path.is_dir():
        return [folder / name for folder, names in visible(path) for name in names]
    return (listed_files(path) if is_recipe(path) and path.exists() else []) or [path]


def stamp(path: Path) -> str:
    """Size of the files behind a path, and when the last of them was changed."""
    stats = [file.stat() for file in files_behind(path) if file.exists()]
    return f"{sum(s.st_size for s in stats)}-{max((s.st_mtime_ns for s in stats), default=0)}"


@dataclass(frozen=True)
class Outcome:
    """What became of one scan, kept as ``outcomes/ID.json``.

    ``unreadable`` is the reason why nothing could be prepared, else empty; ``source`` is the files' fingerprint;
    ``lesion_ml`` the volume of the lesion mask on the scan's own grid; ``read_as`` which series of a study was read,
    where there was a choice; ``content`` a digest of the scan's voxels, the same for copies under any name or format;
    ``files`` the bytes of each prepared file by kind; ``digest`` that of the files' bytes.
    """

    scan_id: str
    unreadable: str
    quality: dict[str, float]
    source: str
    lesion_ml: float | None = None
    read_as: str = ""
    content: str = ""
    files: dict[str, int] = field(default_factory=dict)
    digest: str = ""

    def whole(self, out: Path) -> bool:
        """Whether every prepared file is still there, as long as it was."""
        sizes = {kind: prepared_file(out, kind, self.scan_id) for kind in self.files}
        return all(path.exists() and path.stat().st_size == self.files[kind] for kind, path in sizes.items())


def prepared_file(out: Path, kind: str, scan_id: str) -> Path:
    """The file of a prepared volume, or of the ``transform``."""
    return out / kind / (f"{scan_id}.json" if kind == "transform" else f"{scan_id}.nii.gz")


def digest_of(scan: Volume) -> str:
    """16 hex digits of the voxels, rounded to whole numbers."""
    found = hashlib.sha256(repr(scan.data.shape).encode())
    for part in scan.data:
        found.update(np.rint(part).astype("<i2").tobytes())
    return found.hexdigest()[:16]


def outcome_file(out: Path, scan_id: str) -> Path:
    """Where the outcome of a scan is kept."""
    return out / "outcomes" / f"{scan_id}.json"


def stored_outcome(out: Path, scan_id: str) -> Outcome | None:
    """What is kept of a scan, if its prepared files are all there."""
    try:
        stored = Outcome(**json.loads(outcome_file(out, scan_id).read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # never begun, or damaged
        return None
    return stored if stored.whole(out) else None


def finished(sources: Sources, out: Path) -> Outcome | None:
    """The outcome of a scan that was prepared from these very files."""
    stored = stored_outcome(out, sources.scan_id)
    return stored if stored and stored.source == sources.fingerprint() else None


def adopted(sources: Sources, out: Path) -> Outcome | None:
    """The outcome of a scan whose files, byte for byte, were prepared before they were moved or copied; it is then
    here too."""
    places = [folder for folder in out.parents[1].glob(f"*/{out.name}") if folder.is_dir()]
    candidates = [(f, o) for f in places if (o := stored_outcome(f, sources.scan_id)) and o.digest]
    digest = sources.digest() if candidates else ""
    for folder, stored in candidates:
        if stored.digest != digest:
            continue
        if folder != out:
            files = [prepared_file(folder, kind, sources.scan_id) for kind in stored.files]
            for file in (*files, folder / "preview" / f"{sources.scan_id}.png"):
                if file.exists():
                    with written_whole(out / file.relative_to(folder)) as beside:
                        shutil.copy2(file, beside)
        return keep(replace(stored, source=sources.fingerprint()), out)
    return None


def keep(outcome: Outcome, out: Path) -> Outcome:
    """Write an outcome, after all else: where it is, its scan is done."""
    with written_whole(outcome_file(out, outcome.scan_id)) as path:
        path.write_text(json.dumps(asdict(outcome), indent=1))
    return outcome


@threadpool_limits.wrap(1)  # the workers share the cores; and the bits do not depend on their number
def prepare_scan(sources: Sources, out: Path, preprocessor: Preprocessor) -> Outcome:
    """Prepare one scan of a manifest into ``out``.

    The outcome is written last (``keep``).
    """
    scan_id, source = sources.scan_id, sources.fingerprint()
    outcome_file(out, scan_id).unlink(missing_ok=True)
    try:
        outcome = prepare_anew(sources, source, out, preprocessor)
    except UserError:
        raise
    except Exception as error:  # whatever is wrong with one scan, the others go on
        if isinstance(error, OSError) and isinstance(disk_error(error), UserError):
            raise
        log = out / "logs" / f"{scan_id}.log"
        with written_whole(log) as path:
            path.write_text(traceback.format_exc())
        reason = f"this program failed on it ({type(error).__name__}): please report it with {log.relative_to(out)}"
        return Outcome(scan_id, reason, {}, source)  # not kept: a mended program tries again
    return keep(outcome, out)


def lost_scan(job: tuple[Any, ...], reason: str) -> Outcome:
    """The outcome of a scan that took its worker down or never ended; not kept, so the next call tries again."""
    sources: Sources = job[0]
    return Outcome(sources.scan_id, f"this program could not finish it: {reason}", {}, sources.fingerprint())


def prepare_anew(sources: Sources, source: str, out: Path, preprocessor: Preprocessor) -> Outcome:
    """Read, prepare and write one scan whose fingerprint is ``source``."""
    scan_id, read_as = sources.scan_id, ""
    try:
        scan = preprocessor.read(Path(sources.image))
        read_as = scan.read_as
        companions = read_companions(sources, scan, preprocessor)
        prepared = preprocessor.prepare(scan, companions)
    except UnreadableScan as error:
        return Outcome(scan_id, str(error), {}, source, read_as=read_as)
    files = write_prepared(prepared, out, scan_id)
    lesion = companions.masks.get("lesion_mask")
    return Outcome(
        scan_id,
        "",
        prepared.quality,
        source,
        lesion.ml() if lesion else None,
        scan.read_as,
        digest_of(scan),
        files,
        sources.digest(),
    )


def read_companions(sources: Sources, scan: Volume, preprocessor: Preprocessor) -> Companions:
    """What comes with a scan, read; masks must lie on it.

    Raises:
        UnreadableScan: names the file.
    """
    return Companions(
        brain_mask=read_mask(Path(sources.brain_mask), scan) if sources.brain_mask else None,
        masks={name: read_mask(Path(p), scan) for name in TRUTH if (p := getattr(sources, name))},
        twin=preprocessor.read(Path(sources.twin)) if sources.twin else None,
        transform_fault=load_affine(Path(sources.transform_fault)) if sources.transform_fault else None,
    )


def load_affine(path: Path) -> np.ndarray:
    """A 4x4 matrix from a text file.

    Raises:
        UnreadableScan: anything else.
    """
    try:
        matrix = np.loadtxt(path)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise UnreadableScan(f"its transform_fault {path.name} is not a text file of 4 x 4 numbers")
    return matrix


def write_prepared(prepared: Prepared, out: Path, scan_id: str) -> dict[str, int]:
    """Volumes as NIfTI in MNI space and the transform that leads back, each whole or absent; returns their sizes."""
    volumes = {"image": prepared.image, "brain_mask": prepared.brain_mask, **prepared.extra}
    for kind, data in volumes.items():
        save_volume(prepared_file(out, kind, scan_id), data, prepared.affine)
    with written_whole(prepared_file(out, "transform", scan_id)) as path:
        path.write_text(json.dumps({"mni_to_scan": prepared.mni_to_scan.tolist()}))
    if prepared.preview is not None:
        with written_whole(out / "preview" / f"{scan_id}.png") as path:
            Image.fromarray(prepared.preview).save(path)
    return {kind: prepared_file(out, kind, scan_id).stat().st_size for kind in (*volumes, "transform")}


def read_transform(folder: Path, scan_id: str) -> np.ndarray:
    """MNI mm to the scan's world mm, 4x4, of a prepared scan."""
    return np.array(json.loads((folder / "transform" / f"{scan_id}.json").read_text())["mni_to_scan"])


@dataclass(frozen=True)
class PreparedCohort:
    """Prepared scans under the quality limits of the one who asks.

    ``table`` is the manifest of the accepted scans, its paths those of prepared files; ``quality`` has a row a scan of
    the cohort: description, ``verdict`` (accepted, rejected, unreadable), ``reasons``, and the quality numbers.
    """

    folder: Path
    table: pd.DataFrame
    quality: pd.DataFrame

    @classmethod
    def read(cls, folder: Path, judge: Callable[[dict[str, float]], list[str]]) -> "PreparedCohort":
        """From ``manifest.csv`` (all that could be prepared) and ``quality.csv`` of a folder.

        Test scans that the manifest itself calls ``low_quality`` stay in although quality control rejects them: the
        paper's Fig. 7 scores them on purpose.
        """
        quality = pd.read_csv(folder / "quality.csv", dtype=dict.fromkeys(TEXT, str))
        quality[TEXT] = quality[TEXT].fillna("")
        judged = judge_again(quality, judge)
        rejected = (judged["verdict"] == "rejected") & ~(
            (judged["split"] == "test") & (judged["group"] == "low_quality")
        )
        out = set(judged["scan_id"][rejected | (judged["verdict"] == "unreadable")])
        table = read_manifest(folder / "manifest.csv")
        return cls(folder, table[~table["scan_id"].isin(out)].reset_index(drop=True), judged)

    def with_verdict(self, name: str) -> pd.DataFrame:
        """The rows of ``quality`` with this verdict."""
        return self.quality[self.quality["verdict"] == name]


def judge_again(quality: pd.DataFrame, judge: Callable[[dict[str, float]], list[str]]) -> pd.DataFrame:
    """``quality`` with verdicts and reasons of today's limits; unreadable scans stay so."""
    numbers = [c for c in quality if c not in TEXT]
    verdicts = []
    for row in quality.to_dict("records"):
        if row["verdict"] == "unreadable":
            verdicts.append(("unreadable", row["reasons"]))
        else:
            reasons = judge({str(name): row[name] for name in numbers})
            verdicts.append(("rejected" if reasons else "accepted", "; ".join(reasons)))
    return quality.assign(verdict=[v for v, _ in verdicts], reasons=[r for _, r in verdicts])


def cohort_folder(manifest: Path, data_dir: Path) -> str:
    """The name of a cohort's folder: unique, so that two studies of one name do not share prepared scans.

    Manifests that this program wrote lie in a folder with a unique name; others get a digest of their place.
    """
    place = manifest.resolve()
    if place.is_relative_to((data_dir / "raw").resolve()):
        return place.parent.name
    return f"{place.parent.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Study:
    """A cohort, how its scans are prepared, and where."""

    cohort: Cohort
    preprocessor: Preprocessor
    data_dir: Path
    workers: Workers = 1

    @property
    def folder(self) -> Path:
        """Where prepared scans lie."""
        return self.data_dir / cohort_folder(self.cohort.place(self.data_dir), self.data_dir) / self.preprocessor.hash()

    def read(self) -> PreparedCohort:
        """What ``prepare`` left.

        Raises:
            UserError: nothing has been prepared.
        """
        if not (self.folder / "manifest.csv").exists():
            raise UserError(f"{self.folder} holds no prepared scans: run 'python -m anomaly3d.prepare' first")
        return PreparedCohort.read(self.folder, self.preprocessor.judge)

    def prepare(self) -> PreparedCohort:
        """Prepare what is missing; writes ``manifest.csv`` (what could be prepared) and ``quality.csv`` (all scans).

        Raises:
            UserError: the manifest has problems (before any work), a scan is there twice, or the disk is full.
        """
        manifest = self.cohort.manifest(self.data_dir, self.workers)
        table, folder = read_manifest(manifest), self.folder
        if table.empty:
            raise UserError(f"manifest {manifest} has no rows")
        say(in_words(table))
        mark_output(self.data_dir)
        remove_leftovers(folder)
        self.preprocessor.setup(self.data_dir)
        with closing(self.outcomes(table, folder)) as made:  # Ctrl-C may come between two of them
            found = {outcome.scan_id: outcome for outcome in made}
        outcomes = [found[scan_id] for scan_id in table["scan_id"]]
        rows = [
            {
                "scan_id": o.scan_id,
                "verdict": "unreadable" if o.unreadable else "",
                "reasons": o.unreadable,
                "read_as": o.read_as,
                "content": o.content,
                **o.quality,
            }
            for o in outcomes
        ]
        quality = judge_again(table[DESCRIPTION].merge(pd.DataFrame(rows), on="scan_id"), self.preprocessor.judge)
        with written_whole(folder / "quality.csv") as path:
            quality.to_csv(path, index=False)
        if twice := copies(quality[(quality["split"] != "test") | (quality["label"] != "")]):
            raise UserError(
                f"the same voxels are there under several names: {'; '.join(twice)}: keep one row of each in the "
                f"manifest, or one file in the folder (all scans are in {folder / 'quality.csv'})"
            )
        readable = [not o.unreadable for o in outcomes]
        write_manifest(
            prepared_files(table[readable], [o for o in outcomes if not o.unreadable], folder), folder / "manifest.csv"
        )
        return self.read()

    def outcomes(self, table: pd.DataFrame, folder: Path) -> Generator[Outcome, None, None]:
        """What became of every scan of a manifest, in the order in which they finish."""
        jobs: list[tuple[Any, ...]] = []
        for row in table.to_dict("records"):
            sources = Sources.of(row)
            if stored := finished(sources, folder) or adopted(sources, folder):
                yield stored
            else:
                jobs.append((sources, folder, self.preprocessor))
        if jobs:
            say(f"prepare: {len(jobs)} of {len(table)} scans to do, into {folder}")
            yield from run_parallel(prepare_scan, jobs, self.workers, "prepare", lost_scan, LONGEST)


def in_words(table: pd.DataFrame) -> str:
    """How many scans and subjects there are, by split."""
    parts = [
        f"{split} {len(rows)} of {rows['subject_id'].nunique()}"
        for split in SPLITS
        if len(rows := table[table["split"] == split])
    ]
    return f"{len(table)} scans of {table['subject_id'].nunique()} subjects: {', '.join(parts)}"


def copies(quality: pd.DataFrame) -> list[str]:
    """Scans with the same voxels, each set in words with the splits they are in.

    Among scans that something is learned from or judged by they are a mistake; where nothing is known, worth a word.
    """
    known = quality[quality["content"].fillna("") != ""]
    return [
        " = ".join(f"{row.scan_id} ({row.split})" for row in same.itertuples())
        for _, same in known.groupby("content", sort=False)
        if len(same) > 1
    ]


def tell_read_as(prepared: PreparedCohort) -> None:
    """Say which series of a study was read, where there was a choice."""
    for row in prepared.quality[prepared.quality["read_as"] != ""].to_dict("records"):
        say(f"  {row['scan_id']}: {row['read_as']}")


def prepared_files(table: pd.DataFrame, outcomes: list[Outcome], folder: Path) -> pd.DataFrame:
    """Rows of a manifest with the prepared files in place of the raw ones, and the lesions' volumes."""
    table = table.copy()
    for kind in PATHS:  # transform_fault has no file here: it has been applied
        made = [folder / kind / f"{scan_id}.nii.gz" for scan_id in table["scan_id"]]
        table[kind] = [str(path) if path.exists() else "" for path in made]
    table["lesion_ml"] = [f"{o.lesion_ml:.3f}" if o.lesion_ml is not None else "" for o in outcomes]
    return table
