"""An export of CENTER-TBI (Maas et al. 2015; Steyerberg et al. 2019): scans, and the central review of each by experts.

To get it: propose a study at center-tbi.eu/data; the imaging repository gives NIfTI files or DICOM folders, Neurobot a
table. Export a row a scan with the subject (``gupi``), the scan's path below ``root`` (``file``), and a column for each
finding of the review. The names are keys of ``conf/dataset/center_tbi``, because exports name them differently.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort, columns_of, existing
from anomaly3d.cohorts.names import digest, plain, split_healthy
from anomaly3d.errors import UserError
from anomaly3d.system.workers import Workers

PRESENT = ("1", "1.0", "yes", "present", "true", "y")
ABSENT = ("0", "0.0", "no", "absent", "false", "n")  # anything else: not read, or not to be read


class CenterTBI(Cohort):
    """Scans without any finding are split by ``shares``, those with one are tested.

    A scan with no finding but one that the review could not read is left without a label, and tested.

    Args:
        root: folder of the scans; ``table``: path of the review, below ``root`` or anywhere.
        subject, file: names of its columns; ``age``, ``sex``: the same, if they are there.
        findings: lesion by column.

    Raises:
        UserError: a file or column is not there.
    """

    def __init__(
        self,
        name: str,
        root: str | None,
        table: str,
        subject: str,
        file: str,
        findings: Mapping[str, str],
        shares: Mapping[str, float],
        age: str | None = None,
        sex: str | None = None,
    ) -> None:
        self.name, self.shares, self.findings = name, dict(shares), dict(findings)
        self.subject, self.file, self.age, self.sex = subject, file, age, sex
        self.root = existing(root)
        self.table = existing(str(self.root / table))

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        remedy = (
            "name them with dataset.subject, dataset.file and dataset.findings.NAME=LESION; ~dataset.findings.NAME "
            "leaves one out"
        )
        review = columns_of(self.table, [self.subject, self.file, *self.findings], remedy)
        rows = [self.row(int(k) + 2, read) for k, read in zip(review.index, review.to_dict("records"), strict=True)]
        table = pd.DataFrame(rows)
        return table.assign(split=split_healthy(table["subject_id"], table["label"], self.shares))

    def row(self, number: int, read: dict) -> dict[str, str]:
        """A row of the manifest from row ``number`` of the review."""
        path = self.root / read[self.file]
        if not read[self.file] or not path.exists():
            raise UserError(f"{self.table}, row {number}: the scan {path} does not exist")
        values = {column: read[column].lower() for column in self.findings}
        lesions = sorted({self.findings[column] for column, value in values.items() if value in PRESENT})
        clear = all(value in ABSENT for value in values.values())
        person = plain(read[self.subject])
        return {
            "scan_id": f"{person}-{digest(read[self.file], 6)}",
            "subject_id": person,
            "cohort": self.name,
            "image": str(path.resolve()),
            "label": "1" if lesions else "0" if clear else "",
            "lesions": ";".join(lesions),
            "age": read.get(self.age, "") if self.age else "",
            "sex": read.get(self.sex, "") if self.sex else "",
        }
