"""A BIDS data set (Gorgolewski et al. 2016): ``sub-01/[ses-1/]ct/sub-01_ct.nii.gz``, people in a table.

CT has no place in the standard yet; any image whose suffix or folder is ``suffix`` counts. Masks of lesions are looked
for among the derivatives: ``*_label-lesion_mask.nii.gz`` of the same subject, session and run, in the scan's own space.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from anomaly3d.cohorts.base import Cohort, columns_of, existing
from anomaly3d.cohorts.names import plain, split_healthy
from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import NOTHING, tidy_age, wrong_age
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers

SAME = ("subject", "session", "run", "acquisition", "reconstruction", "ceagent")  # a mask is of the scan with these
NATIVE = ("orig", "native", "individual")  # names of a scan's own space


class BIDS(Cohort):
    """People whose ``label_column`` in ``participants.tsv`` is ``healthy`` are split by ``shares``, others are tested.

    Args:
        root: the data set's folder.
        suffix: of the images, ``ct``; of MR ``T1w``, ``T2w`` or ``FLAIR``.
        label_column: None: nothing is known, all are tested.
        healthy: values of that column.

    Raises:
        UserError: no such data set or column, no such image in it, two masks of one, a person with two diagnoses, or
            pybids is not installed.
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
        self.tell_without_description(derivatives)
        try:
            layout = BIDSLayout(self.root, validate=False, derivatives=derivatives if derivatives.is_dir() else False)
            images = layout.get(extension=[".nii", ".nii.gz"], scope="raw")
        except (OSError, ValueError) as error:
            raise UserError(f"pybids cannot read {self.root} ({error}): mend or remove what it names") from error
        scans = [
            image for image in images if self.suffix in (image.entities.get("suffix"), image.entities.get("datatype"))
        ]
        if not scans:
            raise UserError(
                f"{self.root} holds no image with the suffix or in a folder {self.suffix!r}: see dataset.suffix"
            )
        people = self.participants({scan.entities["subject"] for scan in scans})
        masks = layout.get(suffix="mask", extension=[".nii", ".nii.gz"])
        table = pd.DataFrame([self.row(scan, people, masks) for scan in scans])
        self.tell_abnormal([people.get(scan.entities["subject"], {}) for scan in scans])
        return table.assign(split=split_healthy(table["subject_id"], table["label"], self.shares))

    def tell_without_description(self, derivatives: Path) -> None:
        """Say which derivatives pybids passes over."""
        for folder in sorted(derivatives.glob("*/")):
            if not (folder / "dataset_description.json").exists():
                say(f"{folder} has no dataset_description.json, so no mask is taken from it")

    def participants(self, subjects: Collection[str]) -> dict[str, dict[str, str]]:
        """Rows of ``participants.tsv`` by subject, without ``sub-``.

        Args:
            subjects: who has images; if the table tells who is healthy, it should know them.

        Raises:
            UserError: it knows none of them, or says different things of one.
        """
        path = self.root / "participants.tsv"
        if not path.exists():
            if self.label_column:
                raise UserError(f"{path} does not exist, and dataset.label_column={self.label_column} is in it")
            return {}
        wanted = ["participant_id", *([self.label_column] if self.label_column else [])]
        table = columns_of(path, wanted, "name the one that tells healthy people with dataset.label_column=...")
        records = [{str(name): str(value) for name, value in row.items()} for row in table.to_dict("records")]
        people: dict[str, dict[str, str]] = {}
        for row in records:
            name = row["participant_id"].removeprefix("sub-")
            if self.diagnosis(people.setdefault(name, row)) != self.diagnosis(row):
                raise UserError(
                    f"{path} has several rows of {row['participant_id']}, and their {self.label_column} differs: keep "
                    "one, or give a manifest of your own, which has a row a scan"
                )
        odd = [(name, fault) for name, row in people.items() if (fault := wrong_age(tidy_age(row.get("age", ""))))]
        if odd:
            more = f", and {len(odd) - 1} more like it" if len(odd) > 1 else ""
            raise UserError(f"{path}, sub-{odd[0][0]}: {odd[0][1]}{more}")
        unknown = sorted(set(subjects) - set(people)) if self.label_column else []
        if unknown and len(unknown) == len(subjects):
            raise UserError(
                f"{path} knows nobody who has an image: it has {next(iter(people), 'no row')}, images are of "
                f"sub-{unknown[0]}; write its participant_id as the folders are called"
            )
        if unknown:
            say(f"{path} lacks {len(unknown)} of {len(subjects)} subjects (sub-{unknown[0]}): they get no label")
        return people

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
        subject = scan.entities["subject"]
        known = people.get(subject, {})
        value = self.diagnosis(known)
        lesion = [
            mask.path
            for mask in masks
            if all(mask.entities.get(name) == scan.entities.get(name) for name in SAME)
            and mask.entities.get("space") in (None, *NATIVE, self.suffix)
            and "lesion" in (mask.entities.get("label"), mask.entities.get("desc"))
        ]
        if len(lesion) > 1:
            raise UserError(f"{scan.path} has several lesion masks, {' and '.join(lesion)}: keep one")
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
