"""A study that its owner has described by a manifest: nothing is made."""

from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort
from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import read_manifest
from anomaly3d.system.workers import Workers


class ManifestCohort(Cohort):
    """The scans of a CSV file.

    Args:
        manifest: its path.

    Raises:
        UserError: no path.
    """

    def __init__(self, name: str, manifest: str | None) -> None:
        if not manifest:
            raise UserError("no manifest: give its path with dataset.manifest=...")
        self.name, self.path = name, Path(manifest)

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        return read_manifest(self.path)

    def place(self, data_dir: Path) -> Path:
        return self.path

    def manifest(self, data_dir: Path, workers: Workers) -> Path:
        return self.path


class ScoredManifest(Cohort):
    """The scans of a CSV file, all of them to be scored and none to be learned from or judged by.

    Raises:
        UserError: no path.
    """

    def __init__(self, name: str, manifest: str) -> None:
        self.name, self.path = name, str(Path(manifest).resolve())

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        return read_manifest(Path(self.path)).assign(split="test", label="", group="", cohort=self.name)
