"""Who a detector was trained and calibrated with, in numbers that single out nobody."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from anomaly3d.evaluation.thresholds import between

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
    """The healthy splits of a prepared cohort: all, and where the manifest says it by site, age band and sex."""
    found = []
    for split in SPLITS:
        rows = table[table["split"] == split]
        if rows.empty:
            continue
        found.append(Count(split, "all", "all", len(rows), rows["subject_id"].nunique()))
        for kind, groups in {
            "site": rows["site"],
            "age": between(rows["age"], AGES, "years"),
            "sex": rows["sex"],
        }.items():
            for group, members in rows.groupby(groups.to_numpy(), sort=True):
                if group:
                    scans, subjects = len(members), members["subject_id"].nunique()
                    told = (scans, subjects) if subjects >= FEW else (None, None)
                    found.append(Count(split, kind, str(group), *told))
    return found


def told(number: int | None) -> str:
    """A count for people."""
    return f"fewer than {FEW}" if number is None else str(number)


def as_data(counts: list[Count]) -> list[dict[str, Any]]:
    """Counts as plain values."""
    return [{**vars(count), "scans": told(count.scans), "subjects": told(count.subjects)} for count in counts]
