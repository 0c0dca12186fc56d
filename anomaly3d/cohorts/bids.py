"""A BIDS data set (Gorgolewski et al. 2016): ``sub-01/[ses-1/]ct/sub-01_ct.nii.gz``, people in a table.

CT has no place in the standard yet; any image whose suffix or folder is ``suffix`` counts. Masks of lesions are looked
for among the derivatives: ``*_label-lesion_mask.nii.gz`` of the same subject and session.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly3d.cohorts.base import Cohort, columns_of, existing
from anomaly3d.cohorts.names import plain, split_healthy
from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import NOTHING
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers


class BIDS(Cohort):
    """People whose ``label_column`` in ``participants.tsv`` is ``healthy`` are split by ``shares``, others are tested.

    Args:
        root: the data set's folder.
        suffix: of the images, ``ct``; of MR ``T1w`` or ``T2w``.
        label_column: None: nothing is known, all are tested.
        healthy: values of that column.

    Raises:
        UserError: no such data set or column, no such image in it, or pybids is not installed.
    """

    def __init__(
        self,
        name: str,
        root: str | None,
        label_column: str | None,
        healthy: list[str],
        shares: Mapping[str, float],
        suffix: str = "ct",
    ) -> None:
        self.suffix = suffix
        self.name, self.label_column, self.shares = name, label_column, dict(shares)
        self.healthy = [str(value).lower() for value in healthy]
        self.root = existing(root)

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        try:
            from bids import BIDSLayout
        except ImportError as error:
            raise UserError("dataset=bids needs pybids: pip install pybids") from error
        logging.getLogger("bids").setLevel(logging.ERROR)
        derivatives = self.root / "derivatives"
        layout = BIDSLayout(self.root, validate=False, derivatives=derivatives if derivatives.is_dir() else False)
        images = layout.get(extension=[".nii", ".nii.gz"], scope="raw")
        scans = [
            image for image in images if self.suffix in (image.entities.get("suffix"), image.entities.get("datatype"))
        ]
        if not scans:
            raise UserError(
                f"{self.root} holds no image with the suffix or in a folder {self.suffix!r}: see dataset.suffix"
            )
        people = self.participants()
        masks = layout.get(suffix="mask", extension=[".nii", ".nii.gz"])
        table = pd.DataFrame([self.row(scan, people, masks) for scan in scans])
        self.tell_abnormal([people.get(scan.entities["subject"], {}) for scan in scans])
        return table.assign(split=split_healthy(table["subject_id"], table["label"], self.shares))

    def participants(self) -> dict[str, dict[str, str]]:
        """Rows of ``participants.tsv`` by subject, without ``sub-``."""
        path = self.root / "participants.tsv"
        if not path.exists():
            if self.label_column:
                raise UserError(f"{path} does not exist, and dataset.label_column={self.label_column} is in it")
            return {}
        wanted = ["participant_id", *([self.label_column] if self.label_column else [])]
        table = columns_of(path, wanted, "name the one that tells healthy people with dataset.label_column=...")
        records = [{str(name): str(value) for name, value in row.items()} for row in table.to_dict("records")]
        return {row["participant_id"].removeprefix("sub-"): row for row in records}

    def diagnosis(self, person: Mapping[str, str]) -> str:
        """What the label's column says of somebody, in lower case; empty where it says nothing."""
        value = person.get(self.label_column, "").strip().lower() if self.label_column else ""
        return "" if value in NOTHING else value

    def tell_abnormal(self, people: Iterable[Mapping[str, str]]) -> None:
        """Say which values were taken for abnormal: a typing error of a healthy one is among them."""
        values = Counter(v for v in map(self.diagnosis, people) if v and v not in self.healthy)
        if values:
            told = ", ".join(f"{value} ({count})" for value, count in values.most_common())
            say(f"{self.label_column}: taken as abnormal: {told}; healthy is {', '.join(self.healthy)}")

    def row(self, scan: Any, people: Mapping[str, dict[str, str]], masks: list[Any]) -> dict[str, str]:
        """A row of the manifest for an image of the layout."""
        subject, session = scan.entities["subject"], scan.entities.get("session")
        known = people.get(subject, {})
        value = self.diagnosis(known)
        lesion = [
            mask.path
            for mask in masks
            if mask.entities.get("subject") == subject
            and mask.entities.get("session") == session
            and "lesion" in (mask.entities.get("label"), mask.entities.get("desc"))
        ]
        return {
            "scan_id": plain(Path(scan.path).name),
            "subject_id": f"sub-{subject}",
            "cohort": self.name,
            "image": scan.path,
            "label": ("0" if value in self.healthy else "1") if value else "",
            "lesion_mask": lesion[0] if lesion else "",
            "age": known.get("age", ""),
            "sex": known.get("sex", ""),
        }
