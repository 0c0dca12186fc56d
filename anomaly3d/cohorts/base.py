"""The interface that ``prepare`` knows cohorts by."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import read_table, write_manifest
from anomaly3d.system.workers import Workers


def existing(root: str | None, *inside: str) -> Path:
    """A folder or file of a data set that is there, with what must lie in it.

    Raises:
        UserError: says what is missing.
    """
    if not root:
        raise UserError("no data: give the folder of the release with dataset.root=...")
    path = Path(root)
    for wanted in (path, *(path / name for name in inside)):
        if not wanted.exists():
            raise UserError(f"{wanted} does not exist: dataset.root=... must be the folder of the release as it comes")
    return path.resolve()


def columns_of(path: Path, wanted: Iterable[str], remedy: str) -> pd.DataFrame:
    """A table of a data set as text without spaces around it, with the columns that are wanted; rows that hold nothing,
    as spreadsheets leave them at the end, are left out.

    Args:
        remedy: what to do where one is missing.

    Raises:
        UserError: a column is missing, or it is no table.
    """
    table = read_table(path)
    table.columns = [str(column).strip() for column in table.columns]
    if missing := [column for column in wanted if column not in table]:
        there = ", ".join(map(str, table.columns))
        raise UserError(f"{path} lacks the column(s) {', '.join(missing)}; it has {there}: {remedy}")
    table = table.map(str.strip)
    return table[(table != "").any(axis=1)]


def as_flag(value: str) -> bool | None:
    """1 or 0 of a table, as it was or as a spreadsheet saved it (``1.0``); None for anything else."""
    return {"1": True, "1.0": True, "0": False, "0.0": False}.get(value)


class Cohort(ABC):
    """Who was scanned. A subclass gives the rows of the manifest; writing and checking it is shared code.

    ``synthetic`` cohorts show no person: their pictures may be logged and put into reports.
    """

    name: str
    synthetic = False

    @abstractmethod
    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        """A row a scan with the columns of ``scans.manifest``; paths absolute or below ``folder``.

        Args:
            folder: where files may be written that the cohort makes.
            workers: processes that may be used for it.

        Raises:
            UserError: the cohort's settings or files are wrong.
        """

    def first_row(self, data_dir: Path) -> dict[str, str] | None:
        """One row of a manifest whose making takes long, with its files there, for a first look; else None."""
        return None

    def key(self) -> str:
        """Text that differs where the cohort's scans do."""
        return json.dumps(vars(self), sort_keys=True, default=str)

    def place(self, data_dir: Path) -> Path:
        """The manifest's path, whether or not it is there: ``data_dir/raw/NAME-DIGEST/manifest.csv``."""
        digest = hashlib.sha256(self.key().encode()).hexdigest()[:8]
        return data_dir / "raw" / f"{self.name}-{digest}" / "manifest.csv"

    def manifest(self, data_dir: Path, workers: Workers) -> Path:
        """Write the manifest and return its path.

        Raises:
            UserError: as ``rows``.
        """
        path = self.place(data_dir)
        write_manifest(self.rows(path.parent, workers), path)
        return path
