"""A folder or a list of scans as a cohort: no labels needed; names are the files', or digests for DICOM."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from anomaly3d.cohorts.base import Cohort
from anomaly3d.cohorts.names import digest, distinct, people, plain, pseudonym, split_by_name
from anomaly3d.errors import UserError
from anomaly3d.scans.dicom_headers import is_dicom, read_ids
from anomaly3d.scans.image_files import SUFFIXES
from anomaly3d.scans.recipe import SUFFIX as RECIPE
from anomaly3d.scans.recipe import write_recipe
from anomaly3d.system.files import visible
from anomaly3d.system.progress import track
from anomaly3d.system.workers import Workers

FILES = (*SUFFIXES, RECIPE, ".zip")
MANY = 2000  # DICOM files whose headers take so long that it is shown


@dataclass(frozen=True)
class Found:
    """A scan in a folder: a file, or the DICOM files of one study, which a folder may hold alone.

    ``path`` is the file or that folder, for DICOM files among others their common folder.
    """

    path: Path
    study: str = ""
    patient: str = ""
    files: tuple[Path, ...] = ()
    alone: bool = True


def find_scans(root: Path) -> list[Found]:
    """Every image file below a folder, and every DICOM study, whatever its files are called.

    Raises:
        UserError: the folder does not exist or holds no scan.
    """
    if root.is_file():
        raise UserError(f"root={root} is a file: give its folder, or the file itself with 'scans=[{root}]'")
    if not root.is_dir():
        raise UserError(f"folder {root} does not exist: give the folder of your scans with root=... (dataset.root=...)")
    images, dicom = [], []
    for place, names in visible(root):
        for name in names:
            path = place / name
            if name.lower().endswith(FILES):
                images.append(Found(path))
            elif is_dicom(path):
                dicom.append(path)
    found = images + studies(dicom)
    if not found:
        raise UserError(f"folder {root} holds neither image files ({', '.join(FILES)}) nor DICOM files")
    return found


def studies(files: Sequence[Path]) -> list[Found]:
    """DICOM files by study, and by patient, because some anonymizers give all studies one number; where the study is
    unknown, by folder."""
    ids: Iterable[tuple[str, str]] = map(read_ids, files)
    if len(files) > MANY:
        ids = track(ids, len(files), "DICOM headers")
    known = [(study or str(path.parent), patient) for path, (study, patient) in zip(files, ids, strict=True)]
    people: dict[str, set[str]] = defaultdict(set)
    for study, patient in known:
        people[study] |= {patient} - {""}
    groups: dict[tuple[str, str], list[Path]] = defaultdict(list)
    folders: dict[Path, set[tuple[str, str]]] = defaultdict(set)
    for path, (study, patient) in zip(files, known, strict=True):
        key = study, patient if len(people[study]) > 1 else "".join(people[study])
        groups[key].append(path)
        for folder in path.parents:
            folders[folder].add(key)
    found = []
    for (study, patient), paths in groups.items():
        common = Path(os.path.commonpath([path.parent for path in paths]))
        name = "" if study == str(paths[0].parent) else study
        name = f"{study} {patient}" if len(people[study]) > 1 else name
        found.append(Found(common, name, patient, tuple(paths), alone=folders[common] == {(study, patient)}))
    return found


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

    def rows(self, folder: Path, workers: Workers) -> pd.DataFrame:
        """A row a file or DICOM study.

        Raises:
            UserError: a scan does not exist.
        """
        found = find_scans(self.root) if self.root else self.listed()
        top = self.root or Path(os.path.commonpath([one.path.absolute().parent for one in found]))
        places = [Path(os.path.relpath(one.path.absolute(), top.absolute())) for one in found]
        names = [scan_name(one, place, self.root is None) for one, place in zip(found, places, strict=True)]
        if self.root is None and len({name.lower() for name in names}) < len(names):
            names = [scan_name(one, place, False) for one, place in zip(found, places, strict=True)]
        names = distinct(names, [f"{one.path.absolute()} {one.study}" for one in found])
        persons = [plain(person) for person in people(places)]
        subjects = [
            who(one, name, person, folder.parent) for one, name, person in zip(found, names, persons, strict=True)
        ]
        healthy = self.label == "0"
        return pd.DataFrame(
            {
                "scan_id": names,
                "subject_id": subjects,
                "cohort": self.name,
                "image": [image_of(one, name, folder) for one, name in zip(found, names, strict=True)],
                "label": self.label,
                "split": [split_by_name(s, self.shares) if healthy else "test" for s in subjects],
            }
        )

    def listed(self) -> list[Found]:
        """The scans of the list, each once.

        Raises:
            UserError: one does not exist.
        """
        found: dict[Path, list[Found]] = {}
        for path in map(Path, self.scans):
            if not path.exists():
                raise UserError(f"scan {path} does not exist")
            found[path.resolve()] = find_scans(path) if path.is_dir() else [Found(path)]
        return [one for ones in found.values() for one in ones]


def who(found: Found, name: str, person: str, folder: Path) -> str:
    """The person of a scan: by its path; of DICOM a pseudonym, by its own word or else by its folder, for that may be
    called like the patient. Where several studies share a folder, each is a person."""
    if not found.files:
        return person
    by_folder = pseudonym(f"folder {person}", folder) if found.alone else name
    return pseudonym(found.patient, folder) or by_folder


def scan_name(found: Found, place: Path, short: bool) -> str:
    """A digest for DICOM, whose folders are often called like the patient; else the path, or the file's name only."""
    if found.files:
        return "dicom-" + digest(found.study or str(found.path.resolve()))
    return plain(place.name if short else str(place))


def image_of(found: Found, name: str, folder: Path) -> str:
    """What the manifest names: the file or folder, or a list of DICOM files that lie among others."""
    if found.alone:
        return str(found.path.resolve())
    recipe = folder / "dicom" / f"{name}.recipe"
    files = [str(path.resolve()) for path in found.files]
    write_recipe(recipe, "anomaly3d.scans.dicom.read_dicom_files", files=files)
    return str(recipe)
