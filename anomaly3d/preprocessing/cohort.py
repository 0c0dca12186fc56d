"""All scans of a cohort through its preprocessor, in parallel, into ``data/COHORT/HASH``; and reading them back.

What decides a prepared volume is in the hash. Quality limits are not: numbers are kept, and judged whenever they are
read, so that another limit prepares nothing again.
"""

import hashlib
import shlex
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly3d.cohorts.base import Cohort
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.outcome import Outcome, Sources, finished, prepared_file, stored_outcome
from anomaly3d.preprocessing.scan import lost_scan, prepare_scan
from anomaly3d.scans.manifest import (
    HEALTHY_SPLITS,
    MASKS,
    OVERRULED,
    PATHS,
    SPLITS,
    read_manifest,
    read_text,
    write_manifest,
)
from anomaly3d.system.files import mark_output, remove_leftovers, written_whole
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers, run_parallel

LONGEST = 900.0  # seconds for one scan
DESCRIPTION = ["scan_id", "subject_id", "cohort", "split", "label", "group", "lesions", "quality"]  # in quality.csv too
ABOUT = ["site", "age", "sex"]  # in manifest.csv alone
NAMED = 3  # facts that a sentence names
TEXT = [*DESCRIPTION, "verdict", "reasons", "read_as", "content"]  # the other columns of quality.csv are numbers


@dataclass(frozen=True)
class PreparedCohort:
    """Prepared scans under the quality limits of the one who asks.

    ``table`` is the manifest of the scans in use, its paths those of prepared files; ``quality`` has a row a scan of
    the cohort: description, ``verdict`` (accepted, rejected, unreadable), ``reasons``, and the quality numbers.
    """

    folder: Path
    table: pd.DataFrame
    quality: pd.DataFrame

    @classmethod
    def read(
        cls,
        folder: Path,
        judge: Callable[[dict[str, float]], list[str]],
        accept: Collection[str] = (),
        rejected_too: bool = False,
    ) -> "PreparedCohort":
        """From ``manifest.csv`` (all that could be prepared) and ``quality.csv`` of a folder.

        Test scans that the manifest itself calls ``low_quality`` stay in although quality control rejects them: the
        paper's Fig. 7 scores them on purpose.

        Args:
            accept: as for ``judge_again``.
            rejected_too: all rejected scans stay in.
        """
        quality = read_text(folder / "quality.csv")
        numbers = {str(name): pd.to_numeric(quality[name]) for name in quality if name not in TEXT}
        text = {name: quality.get(name, "") for name in TEXT}
        quality = quality.assign(**numbers, **text)
        judged = judge_again(quality, judge, accept)
        on_purpose = (judged["split"] == "test") & (judged["group"] == "low_quality") | rejected_too
        rejected = (judged["verdict"] == "rejected") & ~on_purpose
        out = set(judged["scan_id"][rejected | (judged["verdict"] == "unreadable")])
        table = read_manifest(folder / "manifest.csv")
        return cls(folder, table[~table["scan_id"].isin(out)].reset_index(drop=True), judged)

    def with_verdict(self, name: str) -> pd.DataFrame:
        """The rows of ``quality`` with this verdict."""
        return self.quality[self.quality["verdict"] == name]

    def refuse_edited(self, manifest: Path) -> None:
        """Refuse to go on with what a manifest said before it was edited.

        Raises:
            UserError: it now lists other scans, or says other things or names other files of one of them.
        """
        now, then = read_manifest(manifest, files=False).set_index("scan_id"), self.quality.set_index("scan_id")
        kept = self.table.set_index("scan_id")
        differs = [f"{n} is new" for n in now.index.difference(then.index, sort=False)]
        differs += [f"{n} is gone" for n in then.index.difference(now.index, sort=False)]
        for before, columns in ((then, DESCRIPTION[1:]), (kept, ABOUT)):
            same = before.index.intersection(now.index, sort=False)
            for column in columns:
                pairs = zip(same, before.loc[same, column], now.loc[same, column], strict=True)
                differs += [f"{column} of {n} was {b or 'empty'}, is {a or 'empty'}" for n, b, a in pairs if a != b]
        same = kept.index.intersection(now.index, sort=False)
        differs += [
            f"{mask} of {n} is {'new' if now.loc[n, mask] else 'gone'}"
            for mask in MASKS
            for n in same
            if bool(kept.loc[n, mask]) != bool(now.loc[n, mask])
        ]
        for row in now.loc[same].reset_index().to_dict("records"):
            stored, sources = stored_outcome(self.folder, row["scan_id"]), Sources.of(row)
            there = all(path.exists() for path in sources.paths().values())  # they may have been removed since
            if stored and there and stored.source != sources.fingerprint(self.folder):
                differs += [f"files of {row['scan_id']} are others"] if stored.digest != sources.digest() else []
        if differs:
            raise UserError(
                f"{manifest} was edited after its scans were prepared ({first_of(differs)}): run "
                f"python -m anomaly3d.prepare dataset=manifest {shlex.quote(f'dataset.manifest={manifest}')} with the "
                "run's preprocessing, which does again only what is needed"
            )


def judge_again(
    quality: pd.DataFrame, judge: Callable[[dict[str, float]], list[str]], accept: Collection[str] = ()
) -> pd.DataFrame:
    """``quality`` with verdicts and reasons of today's limits; unreadable scans stay so.

    Args:
        accept: ``scan_id`` of scans that are accepted whatever the limits say, as those are whose manifest says so; the
            reasons still name what would have been.
    """
    numbers = [c for c in quality if c not in TEXT]
    verdicts = []
    for row in quality.to_dict("records"):
        if row["verdict"] == "unreadable":
            verdicts.append(("unreadable", row["reasons"]))
        else:
            reasons = "; ".join(judge({str(name): row[name] for name in numbers}))
            if reasons and (row["quality"] == OVERRULED or row["scan_id"] in accept):
                verdicts.append(("accepted", f"overruled: {reasons}"))
            else:
                verdicts.append(("rejected" if reasons else "accepted", reasons))
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
    """A cohort, how its scans are prepared, and where; ``accept``, ``rejected_too`` as for ``PreparedCohort.read``."""

    cohort: Cohort
    preprocessor: Preprocessor
    data_dir: Path
    workers: Workers = 1
    accept: Collection[str] = ()
    rejected_too: bool = False

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
        return PreparedCohort.read(self.folder, self.preprocessor.judge, self.accept, self.rejected_too)

    def prepare(self) -> PreparedCohort:
        """Prepare what is missing; writes ``manifest.csv`` (what could be prepared) and ``quality.csv`` (all scans).

        Raises:
            UserError: the manifest has problems or ``accept`` names a scan that it lacks (before any work), a scan is
                there twice, or the disk is full.
        """
        folder = self.folder
        self.first_look(folder)
        manifest = self.cohort.manifest(self.data_dir, self.workers)
        table = read_manifest(manifest)
        if table.empty:
            raise UserError(f"manifest {manifest} has no rows")
        if unknown := sorted(set(self.accept) - set(table["scan_id"])):
            names = ", ".join(table["scan_id"].head(5))
            raise UserError(f"accept: no scan is called {unknown[0]}; scans are called {names}")
        judged = table[(table["split"] != "test") | (table["label"] != "")]
        if not (repeated := judged[judged.duplicated("image", keep=False)].sort_values("image", kind="stable")).empty:
            first = repeated[repeated["image"] == repeated["image"].iloc[0]]
            raise UserError(
                f"manifest {manifest} names {first['image'].iloc[0]} in several rows ({', '.join(first['scan_id'])}): "
                "keep one row of each scan"
            )
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
        described = table[DESCRIPTION].merge(pd.DataFrame(rows), on="scan_id")
        quality = judge_again(described, self.preprocessor.judge, self.accept)
        with written_whole(folder / "quality.csv") as path:
            quality.to_csv(path, index=False)
        if twice := copies(quality[(quality["split"] != "test") | (quality["label"] != "")]):
            raise UserError(
                f"the same voxels are there under several names: {'; '.join(twice)}: keep one row of each in the "
                f"manifest, or one file in the folder (all scans are in {folder / 'quality.csv'})"
            )
        if ill := with_lesion_mask(table, outcomes):
            raise UserError(
                f"lesion masks are not empty of scans that are taken for healthy: {first_of(ill)}: correct label and "
                "split of these scans in the manifest, or their lesion_mask"
            )
        empty = [
            o.scan_id for o, label in zip(outcomes, table["label"], strict=True) if o.lesion_ml == 0 and label == "1"
        ]
        if empty:
            say(f"lesion masks are empty of scans with findings (label 1): {first_of(empty)}")
        readable = [not o.unreadable for o in outcomes]
        write_manifest(
            prepared_files(table[readable], [o for o in outcomes if not o.unreadable], folder), folder / "manifest.csv"
        )
        return self.read()

    def first_look(self, folder: Path) -> None:
        """Where making a cohort takes long, prepare one scan of it before the others are there."""
        row = self.cohort.first_row(self.data_dir)
        if row and not (folder / "preview").exists():
            self.preprocessor.setup(self.data_dir)
            jobs = [(Sources.of(row), folder, self.preprocessor)]
            list(name_first(run_parallel(prepare_scan, jobs, 1, "first look"), folder))

    def outcomes(self, table: pd.DataFrame, folder: Path) -> Generator[Outcome, None, None]:
        """What became of every scan of a manifest, in the order in which they finish; names the first picture."""
        jobs: list[tuple[Any, ...]] = []
        for row in table.to_dict("records"):
            sources = Sources.of(row)
            if stored := finished(sources, folder):
                yield stored
            else:
                jobs.append((sources, folder, self.preprocessor))
        if jobs:
            say(f"prepare: {len(jobs)} of {len(table)} scans to do, into {folder}")
            done = run_parallel(prepare_scan, jobs, self.workers, "prepare", lost_scan, LONGEST)
            yield from done if (folder / "preview").exists() else name_first(done, folder)


def name_first(outcomes: Iterator[Outcome], folder: Path) -> Generator[Outcome, None, None]:
    """The same outcomes; says where the first picture of a prepared scan lies."""
    named = False
    for outcome in outcomes:
        preview = folder / "preview" / f"{outcome.scan_id}.png"
        if not named and preview.exists():
            say(f"prepare: the first scan to look at: {preview}")
            named = True
        yield outcome


def in_words(table: pd.DataFrame) -> str:
    """How many scans and subjects there are, by split."""
    parts = [
        f"{split} {len(rows)} of {rows['subject_id'].nunique()}"
        for split in SPLITS
        if len(rows := table[table["split"] == split])
    ]
    people = table["subject_id"].nunique()
    scans, subjects = ("scan" if len(table) == 1 else "scans"), ("subject" if people == 1 else "subjects")
    return f"{len(table)} {scans} of {people} {subjects}: {', '.join(parts)}"


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


def first_of(facts: Sequence[str]) -> str:
    """Some facts in a row, and how many more there are."""
    more = f" and {len(facts) - NAMED} more" if len(facts) > NAMED else ""
    return "; ".join(facts[:NAMED]) + more


def with_lesion_mask(table: pd.DataFrame, outcomes: Sequence[Outcome]) -> list[str]:
    """Scans of label 0 or of a split of healthy scans whose lesion mask says otherwise, each in words; a mask of a
    healthy scan may well be there, and empty."""
    healthy = (table["label"] == "0") | table["split"].isin(HEALTHY_SPLITS)
    return [
        f"{outcome.scan_id} ({split}, label {label or 'empty'}, {outcome.lesion_ml:.2g} ml)"
        for outcome, split, label, mine in zip(outcomes, table["split"], table["label"], healthy, strict=True)
        if mine and outcome.lesion_ml
    ]


def tell_read_as(prepared: PreparedCohort) -> None:
    """Say which series of a study was read, where there was a choice."""
    for row in prepared.quality[prepared.quality["read_as"] != ""].to_dict("records"):
        say(f"  {row['scan_id']}: {row['read_as']}")


def prepared_files(table: pd.DataFrame, outcomes: list[Outcome], folder: Path) -> pd.DataFrame:
    """Rows of a manifest with the prepared files in place of the raw ones, and the volumes of their masks."""
    table = table.copy()
    for kind in PATHS:  # transform_fault has no file here: it has been applied
        table[kind] = [str(prepared_file(folder, kind, o.scan_id)) if kind in o.files else "" for o in outcomes]
    for column in ("lesion_ml", "segmentation_ml"):
        volumes = [getattr(outcome, column) for outcome in outcomes]
        table[column] = [f"{ml:.3f}" if ml is not None else "" for ml in volumes]
    return table
