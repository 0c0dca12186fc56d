"""A cohort as its adapter's author would write it: one class that gives rows."""

from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort
from anomaly3d.errors import UserError


class NamedFiles(Cohort):
    """Files of a folder whose names say what they are: ``train-0001.nii.gz``, ``subdural-0001.nii.gz``."""

    synthetic = True

    def __init__(self, name: str, root: str | None) -> None:
        if not root or not Path(root).is_dir():
            raise UserError(f"dataset.root={root} is not a folder")
        self.name, self.root = name, root

    def rows(self, folder: Path, workers: int) -> pd.DataFrame:
        files = sorted(Path(self.root).glob("*.nii.gz"))
        kinds = [file.name.split("-")[0] for file in files]
        return pd.DataFrame(
            {
                "scan_id": [file.name.removesuffix(".nii.gz") for file in files],
                "subject_id": [file.name for file in files],
                "image": [str(file) for file in files],
                "label": ["0" if k in ("train", "validation", "calibration", "normal") else "1" for k in kinds],
                "split": [k if k in ("train", "validation", "calibration") else "test" for k in kinds],
                "lesions": [k if k in ("epidural", "subdural", "intraparenchymal") else "" for k in kinds],
            }
        )
