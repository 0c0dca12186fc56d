"""A folder or a list of scans as a cohort: no labels needed, names are the files'."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort
from anomaly3d.errors import UserError

SUFFIXES = (".nii", ".nii.gz")


def find_scans(root: Path) -> list[Path]:
    """Every NIfTI file below a folder, and every folder that holds DICOM slices.

    Raises:
        UserError: the folder does not exist or holds no scan.
    """
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist: give the folder of your scans with root=... (dataset.root=...)")
    nifti = [p for p in root.rglob("*") if p.name.lower().endswith(SUFFIXES) and p.is_file()]
    dicom = sorted({p.parent for p in root.rglob("*.dcm")})
    if not nifti and not dicom:
        raise UserError(f"folder {root} holds neither NIfTI files (.nii, .nii.gz) nor DICOM slices (.dcm)")
    return sorted(nifti) + dicom


def scan_name(path: Path, root: Path | None = None) -> str:
    """A scan_id from a path: its place below the root, without suffixes, with dashes for what a name cannot hold."""
    text = str(path.relative_to(root)) if root else path.name
    return re.sub(r"[^A-Za-z0-9._]+", "-", re.sub(r"\.nii(\.gz)?$", "", text, flags=re.IGNORECASE)).strip("-")


def subject_name(path: Path, root: Path | None) -> str:
    """The folder below the root that holds a nested scan is its person; empty where scans lie side by side."""
    parts = path.relative_to(root).parts if root else ()
    return scan_name(Path(parts[0])) if len(parts) > 1 else ""


def split_by_name(name: str, shares: dict[str, float]) -> str:
    """A split drawn from a person's name itself, so that adding scans moves none of the others."""
    draw = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12 * sum(shares.values())
    for split, share in shares.items():
        draw -= share
        if draw < 0:
            return split
    return list(shares)[-1]


class FolderCohort(Cohort):
    """Scans of a folder (``root``) or of a list (``scans``).

    Args:
        label: 0 when all scans are known to be healthy: they are then split by ``shares`` into train, validation,
            calibration and test; None when nothing is known: all go to test.

    Raises:
        UserError: neither folder nor list is given.
    """

    def __init__(
        self,
        name: str,
        root: str | None = None,
        scans: str | Sequence[str] = (),
        label: int | str | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        self.name, self.root = name, Path(root) if root else None
        self.scans = [scans] if isinstance(scans, str) else [str(scan) for scan in scans]
        self.label, self.shares = "" if label is None else str(label), dict(shares or {})
        if not self.root and not self.scans:
            raise UserError(
                "no scans: name a folder with root=FOLDER or files with 'scans=[a.nii.gz,b.nii.gz]' (for prepare and "
                "train: dataset.root=... and dataset.scans=[...])"
            )

    def key(self) -> str:
        if self.root:
            return str(self.root.resolve())
        return "\n".join(str(Path(scan).resolve()) for scan in self.scans)

    def rows(self, folder: Path, workers: int) -> pd.DataFrame:
        """A row a file or DICOM folder.

        Raises:
            UserError: a scan does not exist, or two scans would have the same name.
        """
        paths = find_scans(self.root) if self.root else [Path(s) for s in self.scans]
        for path in paths:
            if not path.exists():
                raise UserError(f"scan {path} does not exist")
        names = [scan_name(p, self.root) for p in paths]
        subjects = [subject_name(p, self.root) or n for p, n in zip(paths, names, strict=True)]
        if doubles := sorted({n for n in names if names.count(n) > 1}):
            raise UserError(f"two scans would both be named {doubles[0]}: rename one, or write a manifest")
        healthy = self.label == "0"
        return pd.DataFrame(
            {
                "scan_id": names,
                "subject_id": subjects,
                "cohort": self.name,
                "image": [str(p.resolve()) for p in paths],
                "label": self.label,
                "split": [split_by_name(s, self.shares) if healthy else "test" for s in subjects],
            }
        )
