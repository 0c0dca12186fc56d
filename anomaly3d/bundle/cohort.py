"""Who a detector was trained and calibrated with, in numbers that single out nobody."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.evaluation.thresholds import between

UNKNOWN = "unknown"
FEW = 5  # subjects of a group; the number of fewer is not told
AGES = (0, 18, 40, 60, 75, np.inf)  # years
SPLITS = ("train", "validation", "healthy_reference", "calibration")


@dataclass(frozen=True)
class Count:
    """How many scans of how many subjects a group of a split has; None where they are too few to be told."""

    split: str
    kind: str
    group: str
    scans: int | None
    subjects: int | None


def counts_of(table: pd.DataFrame) -> list[Count]:
    """The healthy splits of a prepared cohort: all, and where the manifest says it by site, age band and sex.

    Those of whom it does not say it are a group as well, or they could be told by what is left.
    """
    found = []
    for split in SPLITS:
        rows = table[table["split"] == split]
        kinds = {
            "all": np.full(len(rows), "all"),
            "site": rows["site"],
            "age": between(rows["age"], AGES, "years"),
            "sex": rows["sex"],
        }
        for kind, groups in kinds.items():
            names = np.where(np.asarray(groups) == "", UNKNOWN, np.asarray(groups))
            parts = [(str(name), part) for name, part in rows.groupby(names, sort=True)]
            subjects = [part["subject_id"].nunique() for _, part in parts]
            if [name for name, _ in parts] == [UNKNOWN]:
                continue
            for (name, part), count, few in zip(parts, subjects, hidden(subjects), strict=True):
                found.append(Count(split, kind, name, *((None, None) if few else (len(part), count))))
    return found


def hidden(subjects: list[int]) -> list[bool]:
    """Which groups of a kind are not told: those of few subjects, and the next smallest where what is told of all
    would tell these as well: that together they are few, or as many as the groups."""
    order = np.argsort(subjects, kind="stable")
    count = sum(number < FEW for number in subjects)
    while 0 < count < len(subjects) and sum(subjects[k] for k in order[:count]) in (count, *range(FEW)):
        count += 1
    return [k in order[:count] for k in range(len(subjects))]


def told(number: int | None) -> str:
    """A count for people."""
    return "not told" if number is None else str(number)


def as_data(counts: list[Count]) -> list[dict[str, Any]]:
    """Counts as plain values."""
    return [{**vars(count), "scans": told(count.scans), "subjects": told(count.subjects)} for count in counts]
