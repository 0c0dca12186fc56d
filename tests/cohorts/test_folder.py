from pathlib import Path

import pytest

from anomaly3d.cohorts.folder import FolderCohort, find_scans, scan_name, split_by_name
from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import read_manifest

SHARES = {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1}


def scans(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_finds_nifti_and_dicom_folders(tmp_path):
    root = scans(tmp_path / "in", "a.nii", "p1/b.NII.GZ", "p2/series/1.dcm", "p2/series/2.dcm", "notes.txt")
    assert [scan_name(p, root) for p in find_scans(root)] == ["a", "p1-b", "p2-series"]


def test_all_scans_of_a_person_get_one_split(tmp_path):
    names = [f"p{i}/day{j}.nii" for i in range(20) for j in range(2)]
    cohort = FolderCohort("mine", str(scans(tmp_path / "in", *names)), label=0, shares=SHARES)
    table = read_manifest(cohort.manifest(tmp_path, 1))
    assert len(table) == 40
    assert table["subject_id"].nunique() == 20
    assert (table.groupby("subject_id")["split"].nunique() == 1).all()
    assert {"train", "validation"} <= set(table["split"])


def test_unknown_scans_are_tested_only_and_two_folders_stay_apart(tmp_path):
    cohorts = [FolderCohort("mine", str(scans(tmp_path / r, "a.nii"))) for r in ("one", "two")]
    made = [cohort.manifest(tmp_path, 1) for cohort in cohorts]
    assert made[0] != made[1]
    assert list(read_manifest(made[0])["split"]) == ["test"]


def test_the_split_follows_the_shares_and_only_the_name():
    drawn = [split_by_name(f"p{i}", SHARES) for i in range(2000)]
    assert drawn == [split_by_name(f"p{i}", SHARES) for i in range(2000)]
    assert abs(drawn.count("train") / 2000 - 0.6) < 0.04


@pytest.mark.parametrize(
    ("root", "listed", "word"), [("gone", [], "gone"), (None, [], "no scans"), (None, ["x.nii"], "x.nii")]
)
def test_mistakes_name_the_place(tmp_path, root, listed, word):
    with pytest.raises(UserError, match=word):
        FolderCohort("mine", str(tmp_path / root) if root else None, listed).manifest(tmp_path, 1)


def test_two_scans_of_one_name_are_refused(tmp_path):
    root = scans(tmp_path / "in", "a.nii", "b/a.nii")
    with pytest.raises(UserError, match="both be named a"):
        FolderCohort("mine", scans=[str(root / "a.nii"), str(root / "b" / "a.nii")]).manifest(tmp_path, 1)
