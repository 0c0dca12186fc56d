"""PhysioNet CT-ICH 1.3.1 (Hssayeni et al. 2020): 75 head CTs of trauma, bleeds masked; the paper's second test set.

To get it: sign the agreement at physionet.org/content/ct-ich/1.3.1, download, unpack; ``root`` is the folder that holds
``ct_scans``. The release numbers 82 patients from 49 to 130; scans of 59 to 65 are not in it.
"""

from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort, as_flag, columns_of, existing
from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import read_table
from anomaly3d.system.progress import say
from anomaly3d.system.workers import Workers

DIAGNOSES = "hemorrhage_diagnosis_raw_ct.csv"  # a row a slice
DEMOGRAPHICS = "Patient_demographics.csv"
BLEEDS = {
    "Intraventricular": "intraventricular",
    "Intraparenchymal": "intraparenchymal",
    "Subarachnoid": "subarachnoid",
    "Epidural": "epidural",
    "Subdural": "subdural",
}
FRACTURE = "Fracture_Yes_No"


class PhysioNetCTICH(Cohort):
    """All scans are tested, as in the paper: abnormal with a bleed or a fracture in any slice.

    Args:
        root: the release's folder.

    Raises:
        UserError: it is not there, or lacks a file or column.
    """

    def __init__(self, name: str, root: str | None) -> None:
        self.name = name
        self.root = existing(root, "ct_scans", DIAGNOSES)

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        wanted = ("PatientNumber", *BLEEDS)
        remedy = "take the table of release 1.3.1"
        slices = columns_of(self.root / DIAGNOSES, wanted, remedy)
        if FRACTURE not in slices:
            slices = slices.assign(**{FRACTURE: "0"})
        known = demographics(self.root / DEMOGRAPHICS)
        rows, without = [], []
        flags = slices[[*BLEEDS, FRACTURE]].map(lambda value: as_flag(value or "0"))
        numbers = pd.to_numeric(slices["PatientNumber"], errors="coerce")
        if (wrong := flags.isna().any(axis=1) | numbers.isna()).any():
            raise UserError(
                f"{self.root / DIAGNOSES}, row {slices.index[wrong][0] + 2}: no patient's number, or a diagnosis other "
                f"than 0 and 1: {remedy}"
            )
        for patient, found in flags.groupby(numbers.astype(int)):
            name = f"{patient:03d}"
            scan = first_of(self.root / "ct_scans", name)
            if scan is None:
                without.append(name)
                continue
            lesions = [lesion for column, lesion in BLEEDS.items() if found[column].any()]
            bleeds = bool(lesions)
            lesions += ["fracture"] if found[FRACTURE].any() else []
            mask = first_of(self.root / "masks", name) if bleeds else None
            rows.append(
                {
                    "scan_id": f"ctich-{name}",
                    "subject_id": f"ctich-{name}",
                    "cohort": self.name,
                    "image": str(scan),
                    "label": "1" if lesions else "0",
                    "split": "test",
                    "lesions": ";".join(lesions),
                    "lesion_mask": str(mask) if mask else "",
                    **known.get(patient, {}),
                }
            )
        if without:
            say(f"{self.name}: no scan of patient(s) {', '.join(without)} in {self.root / 'ct_scans'}; left out")
        if not rows:
            raise UserError(f"{self.root / 'ct_scans'} holds no scan like 049.nii")
        return pd.DataFrame(rows)


def first_of(folder: Path, name: str) -> Path | None:
    """The NIfTI file of a patient, None where there is none."""
    return next((path for suffix in (".nii", ".nii.gz") if (path := folder / f"{name}{suffix}").exists()), None)


def demographics(path: Path) -> dict[int, dict[str, str]]:
    """Age and sex by patient; the release's table has a title row above its two rows of column names."""
    if not path.exists():
        return {}
    cells = [[str(cell).strip() for cell in row] for row in read_table(path).T.reset_index().T.to_numpy()]
    columns = next((row for row in cells if any(cell.startswith("Patient") for cell in row)), [])
    where = {key: k for k, cell in enumerate(columns) for key in ("Patient", "Age", "Gender") if cell.startswith(key)}
    if len(where) < 3:
        return {}
    found = {}
    for row in cells:
        if row[where["Patient"]].replace(".0", "").isdigit():
            age, sex = row[where["Age"]], row[where["Gender"]]
            found[int(float(row[where["Patient"]]))] = {"age": age, "sex": sex}
    return found
