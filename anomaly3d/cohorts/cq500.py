"""CQ500 (Chilamkurthy et al. 2018): 491 head CTs in DICOM, each read by three radiologists.

To get it: headctstudy.qure.ai/dataset or academictorrents.com, under CC BY-NC-SA 4.0. ``root`` is the folder that holds
``reads.csv`` and, at any depth, a folder or zip archive a patient (``CQ500CT0 CQ500CT0`` or ``CQ500CT0.zip``).
"""

import re
from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort, as_flag, columns_of, existing
from anomaly3d.errors import UserError
from anomaly3d.system.files import visible
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers

READS = "reads.csv"
READERS = ("R1", "R2", "R3")
FINDINGS = {
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SDH": "subdural",
    "EDH": "epidural",
    "SAH": "subarachnoid",
    "Fracture": "fracture",
    "MassEffect": "mass_effect",
    "MidlineShift": "midline_shift",
}
ANY_BLEED = "ICH"
PLACE = re.compile(r"CQ500CT(\d+)\b.*")
NAME = re.compile(r"CQ500-CT-(\d+)")


class CQ500(Cohort):
    """All scans are tested: abnormal where two of the three readers saw a bleed, a fracture, mass effect or a shift.

    Those without are "normal" for these findings only; the readers were not asked for others, such as infarcts. Where
    two reads of a finding are missing and nothing else is there, the label is empty.

    Args:
        root: the release's folder.

    Raises:
        UserError: it is not there, or lacks a file or column.
    """

    def __init__(self, name: str, root: str | None) -> None:
        self.name = name
        self.root = existing(root, READS)

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        wanted = ["name", *(f"{reader}:{finding}" for reader in READERS for finding in (ANY_BLEED, *FINDINGS))]
        reads = columns_of(self.root / READS, wanted, "take reads.csv as the release has it")
        places = patients(self.root)
        rows, without = [], []
        for read in reads.to_dict("records"):
            number = NAME.fullmatch(read["name"])
            if not number or int(number[1]) not in places:
                without.append(str(read["name"]))
                continue
            seen = {
                finding: majority([as_flag(read[f"{reader}:{finding}"]) for reader in READERS])
                for finding in (ANY_BLEED, *FINDINGS)
            }
            lesions = [lesion for finding, lesion in FINDINGS.items() if seen[finding]]
            clear = all(found is False for found in seen.values())
            name = f"cq500-{int(number[1]):03d}"
            rows.append(
                {
                    "scan_id": name,
                    "subject_id": name,
                    "cohort": self.name,
                    "image": str(places[int(number[1])]),
                    "label": "1" if lesions or seen[ANY_BLEED] else "0" if clear else "",
                    "split": "test",
                    "lesions": ";".join(lesions),
                }
            )
        if without:
            shown = ", ".join(without[:5]) + (" ..." if len(without) > 5 else "")
            say(f"{self.name}: no scan of {len(without)} patient(s) below {self.root} ({shown}); they are left out")
        if not rows:
            raise UserError(f"{self.root} holds no folder of a patient like 'CQ500CT0 CQ500CT0'")
        return pd.DataFrame(rows)


def majority(reads: list[bool | None]) -> bool | None:
    """What two readers agree on; None where they do not, because reads are missing."""
    return next((vote for vote in (True, False) if reads.count(vote) >= 2), None)


def patients(root: Path) -> dict[int, Path]:
    """Folder or zip archive of every patient below ``root``; the folder nearest to the root."""
    found: dict[int, Path] = {}
    for place, names in visible(root):
        zips = [place / name for name in names if name.endswith(".zip")]
        for path in [place, *zips]:
            if (number := PLACE.fullmatch(path.name)) and path != root:
                found.setdefault(int(number[1]), path.resolve())
    return found
