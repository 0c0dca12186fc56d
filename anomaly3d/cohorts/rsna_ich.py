"""RSNA Intracranial Hemorrhage Detection (Flanders et al. 2020): 25,000 head CTs as loose slices, labelled one by one.

To get it: kaggle.com/c/rsna-intracranial-hemorrhage-detection/data. ``root`` is the folder that holds
``stage_2_train.csv`` and ``stage_2_train/ID_*.dcm``. Slices belong to scans by their headers, 750,000 of them, each
read once.
"""

import os
from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort, as_flag, columns_of, existing
from anomaly3d.cohorts.folder import image_of, scan_name, studies
from anomaly3d.cohorts.names import pseudonym, split_healthy
from anomaly3d.errors import UserError
from anomaly3d.scans.dicom_headers import find_dicom
from anomaly3d.system.files import sha256, written_whole
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers

MADE_OF = "made_of.txt"  # beside the manifest
BLEEDS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")


class RSNAICH(Cohort):
    """Scans without a bleed in any slice are split by ``shares``, the others are tested; no word on other findings.

    Args:
        root: folder of the csv and the slices.
        part: their name, ``stage_2_train``.

    Raises:
        UserError: they are not there.
    """

    def __init__(self, name: str, root: str | None, part: str, shares: dict[str, float]) -> None:
        self.name, self.part, self.shares = name, part, dict(shares)
        self.root = existing(root, part, f"{part}.csv")

    def manifest(self, data_dir: Path, workers: Workers) -> Path:
        """As of any cohort; made once of as many slices and one table, because it reads them all."""
        path = self.place(data_dir)
        made_of, now = path.parent / MADE_OF, self.state()
        if path.exists() and made_of.exists() and made_of.read_text() == now:
            return path
        super().manifest(data_dir, workers)
        with written_whole(made_of) as beside:
            beside.write_text(now)
        return path

    def state(self) -> str:
        """How many slices lie there, and which table: a download may be unpacked in several goes."""
        slices = sum(1 for _ in os.scandir(self.root / self.part))
        return f"{slices} slices, {self.part}.csv {sha256(self.root / f'{self.part}.csv')}"

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        labels = columns_of(self.root / f"{self.part}.csv", ("ID", "Label"), "take the table of the challenge")
        parts = labels["ID"].str.rsplit("_", n=1, expand=True)
        flags = labels["Label"].map(as_flag)
        if (wrong := labels[flags.isna()]).size:
            first = wrong.iloc[0]
            raise UserError(
                f"{self.part}.csv: the Label of {first['ID']} is {first['Label'] or 'empty'}, not 0 or 1: take the "
                "table of the challenge"
            )
        seen = labels.assign(slice=parts[0], kind=parts[1])[flags.astype(bool)]
        shows = {str(name): set(kinds) for name, kinds in seen.groupby("slice")["kind"]}
        labelled = set(parts[0])
        files = find_dicom(self.root / self.part)
        if gone := labelled - {path.stem for path in files}:
            say(
                f"{self.name}: {len(gone)} of {len(labelled)} slices of {self.part}.csv are not in "
                f"{self.root / self.part} (one is {min(gone)}): of a scan that is there in part, a bleed may be missing"
            )
        found = studies(files)
        names = [scan_name(one, one.path, False) for one in found]
        kinds = [set().union(*(shows.get(path.stem, set()) for path in one.files)) for one in found]
        known = [any(path.stem in labelled for path in one.files) for one in found]
        subjects = [pseudonym(one.patient, folder.parent) or name for one, name in zip(found, names, strict=True)]
        marks = [("1" if kind else "0") if there else "" for kind, there in zip(kinds, known, strict=True)]
        return pd.DataFrame(
            {
                "scan_id": names,
                "subject_id": subjects,
                "cohort": self.name,
                "image": [image_of(one, name, folder) for one, name in zip(found, names, strict=True)],
                "label": marks,
                "split": split_healthy(subjects, marks, self.shares),
                "lesions": [";".join(bleed for bleed in BLEEDS if bleed in kind) for kind in kinds],
            }
        )
