"""Folders as people keep them: which scans are found, what they are called, who they show."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest
from pydicom.uid import generate_uid

from anomaly3d.cohorts.folder import FolderCohort, find_scans
from anomaly3d.cohorts.names import distinct, people, plain, pseudonym, split_by_name, split_healthy
from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import read_manifest
from anomaly3d.scans.readers import read_scan
from anomaly3d.system.files import is_name, mark_output
from tests.writers import small_head, write_series

SHARES = {"train": 0.6, "validation": 0.2, "calibration": 0.1, "test": 0.1}


def scans(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def rows(tmp_path: Path, root: Path, **more) -> pd.DataFrame:
    return FolderCohort("mine", str(root), shares=SHARES, **more).rows(tmp_path / "raw" / "mine", 1)


def test_finds_images_of_any_format_and_dicom_whatever_the_case(tmp_path):
    names = ["a.nii", "p1/b.NII.GZ", "c.nrrd", "d.mgz", "e.hdr", "f.zip", "p2/series/1.dcm", "p2/series/2.dcm", "x.txt"]
    found = find_scans(scans(tmp_path / "in", *names, "e.img"))
    assert {one.path.name for one in found} == {"a.nii", "b.NII.GZ", "c.nrrd", "d.mgz", "e.hdr", "f.zip", "series"}


def test_a_file_in_place_of_a_folder_is_called_one(tmp_path):
    file = scans(tmp_path, "a.nii.gz") / "a.nii.gz"
    with pytest.raises(UserError, match=r"a\.nii\.gz is a file: give its folder, or the file itself with 'scans=\["):
        find_scans(file)


def test_hidden_and_system_files_dangling_links_and_own_results_are_passed_over(tmp_path):
    root = scans(tmp_path / "in", "a.nii", "._a.nii", ".b/c.nii", "@eaDir/a.nii", "__MACOSX/a.nii", "data/raw/p.nii")
    mark_output(root / "data")
    (root / "gone.nii").symlink_to(root / "nowhere.nii")
    assert [one.path.name for one in find_scans(root)] == ["a.nii"]
    assert [one.path.name for one in find_scans(root / "data")] == ["p.nii"]  # unless they are asked for


def test_links_are_followed_once(tmp_path):
    root = scans(tmp_path / "real", "p1/ct.nii.gz").parent
    (root / "linked").mkdir()
    (root / "linked" / "p1").symlink_to(root / "real" / "p1", target_is_directory=True)
    (root / "linked" / "loop").symlink_to(root / "linked", target_is_directory=True)
    assert list(rows(tmp_path, root / "linked")["scan_id"]) == ["p1-ct"]


@pytest.mark.parametrize(
    ("paths", "persons"),
    [
        (["a.nii", "b.nii"], ["a.nii", "b.nii"]),
        (["ct/a.nii", "ct/b.nii", "ct/c.nii"], ["ct/a.nii", "ct/b.nii", "ct/c.nii"]),  # a folder between
        (["p1/ct.nii", "p2/ct.nii"], ["p1", "p2"]),
        (["ct/p1/1.nii", "ct/p1/2.nii", "ct/p2/7.nii"], ["ct/p1", "ct/p1", "ct/p2"]),
        (["p1/2020/ct.nii", "p1/2021/ct.nii", "p2/2019/ct.nii"], ["p1", "p1", "p2"]),
        ([f"{s}/{s}{i}.nii" for s in "AB" for i in range(5)], [f"{s}/{s}{i}.nii" for s in "AB" for i in range(5)]),
        ([f"{s}/{s}{i}/ct.nii" for s in "AB" for i in range(5)], [f"{s}/{s}{i}" for s in "AB" for i in range(5)]),
        ([f"{p}/day{i}.nii" for p in "pq" for i in range(5)], [p for p in "pq" for _ in range(5)]),
        (["sub-01/ses-1/ct/sub-01_ct.nii", "sub-01/ses-2/ct/x.nii"], ["sub-01", "sub-01"]),
        (["sub-01_ses-1_ct.nii", "sub-01_ses-2_ct.nii", "sub-02_ct.nii"], ["sub-01", "sub-01", "sub-02"]),
        ([f"{s}/p{i}.nii" for s in ("baseline", "follow-up") for i in range(3)], 2 * ["p0.nii", "p1.nii", "p2.nii"]),
        (["visit1/p0/a.nii", "visit1/p1/a.nii", "visit1/p2/a.nii", "visit2/p0/b.nii"], ["p0", "p1", "p2", "p0"]),
        ([f"{s}/p{i}.nii" for s in ("früh", "spät") for i in range(10)], 2 * [f"p{i}.nii" for i in range(10)]),
        ([f"scan{i}/ct.nii" for i in range(3)], [f"scan{i}" for i in range(3)]),
    ],
)
def test_only_a_folder_of_one_persons_scans_names_a_person(paths, persons):
    assert people([Path(path) for path in paths]) == persons


def test_twelve_people_in_one_folder_are_twelve(tmp_path):
    table = rows(tmp_path, scans(tmp_path / "in", *(f"ct/h{k:03d}.nii.gz" for k in range(12))), label=0)
    assert table["subject_id"].nunique() == 12
    assert {"train", "validation"} <= set(table["split"])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("head ct 1.nii.gz", "head-ct-1"),
        ("Müller.nii.gz", "Muller"),
        ("h(1).NII.GZ", "h-1"),
        ("p1/day=2.nrrd", "p1-day-2"),
    ],
)
def test_names_keep_what_a_file_name_may_hold(text, name):
    assert plain(text) == name


def test_names_of_any_script_stay_apart():
    assert len({plain(f"头部{n}.nii") for n in "一二三"}) == 3
    assert distinct(["a", "A", "b"], ["x", "y", "z"])[2] == "b"
    assert len({name.lower() for name in distinct(["a", "A"], ["x", "y"])}) == 2


@pytest.mark.parametrize(
    "text",
    ["../../x.nii", "/etc/passwd", "..", "a\\..\\b", "a\0b", ".hidden", "-rf", "deep/" * 100 + "a.nii", "é" * 300],
)
def test_names_lead_nowhere_and_fit_into_a_file_system(text):
    (name,) = distinct([plain(text)], [text])
    assert is_name(name)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)


def test_long_paths_stay_apart():
    assert plain("deep/" * 100 + "a.nii") != plain("deep/" * 100 + "b.nii")


def test_dicom_ids_that_lead_elsewhere_name_digests(tmp_path):
    scans, made = tmp_path / "scans", tmp_path / "data" / "raw" / "x"
    for k in range(2):  # in one folder, so that lists of files are written
        write_series(scans, small_head(), study=f"../../../out{k}", name=f"{k}-{{}}.dcm", PatientID="../../../../out")
    rows = FolderCohort("x", str(scans)).rows(made, 1)
    assert all(is_name(name) for name in [*rows["scan_id"], *rows["subject_id"]])
    assert {path.parts[len(tmp_path.parts)] for path in tmp_path.rglob("*")} == {"scans", "data"}
    assert all(Path(image).parent == made / "dicom" for image in rows["image"])


def test_listed_scans_of_one_file_name_are_told_apart_by_their_folders(tmp_path):
    root = scans(tmp_path / "in", "p0/ct.nii.gz", "p1/ct.nii.gz", "b.nii")
    listed = [str(root / name) for name in ("p0/ct.nii.gz", "p1/ct.nii.gz", "p1/ct.nii.gz")]
    assert list(FolderCohort("mine", scans=listed).rows(tmp_path, 1)["scan_id"]) == ["p0-ct", "p1-ct"]
    assert list(FolderCohort("mine", scans=[str(root / "b.nii")]).rows(tmp_path, 1)["scan_id"]) == ["b"]


def test_dicom_is_named_by_digests_and_its_people_by_pseudonyms(tmp_path):
    head = small_head()
    for person, study in (("DOE^JOHN", 1), ("DOE^JOHN", 2), ("ROE^JANE", 3)):
        write_series(tmp_path / "in" / person / str(study), head, PatientID=person, PatientName=person)
    table = rows(tmp_path, tmp_path / "in", label=0)
    assert table["scan_id"].str.fullmatch(r"dicom-[0-9a-f]{12}").all()
    assert table["scan_id"].nunique() == 3
    assert table["subject_id"].str.fullmatch(r"p-[0-9a-f]{12}").all()
    assert list(table["subject_id"].value_counts()) == [2, 1]
    again = rows(tmp_path, tmp_path / "in", label=0)
    assert list(again["subject_id"]) == list(table["subject_id"])
    elsewhere = rows(tmp_path / "other", tmp_path / "in", label=0)
    assert list(elsewhere["scan_id"]) == list(table["scan_id"])
    assert not set(elsewhere["subject_id"]) & set(table["subject_id"])  # another key


def test_ids_that_anonymizers_give_to_everybody_name_nobody(tmp_path):
    assert [pseudonym(name, tmp_path) for name in ("ANONYMOUS", "0000", "", "xxx", "DE-IDENTIFIED")] == [""] * 5
    assert len({pseudonym(name, tmp_path) for name in ("4711", "ANON001", "ANON002", "Anonymized12")}) == 4
    assert oct((tmp_path / "pseudonyms.key").stat().st_mode)[-3:] == "600"


def test_a_key_that_is_cut_short_is_refused(tmp_path):
    """Pseudonyms of an empty one could be undone by whoever tries all ids."""
    (tmp_path / "pseudonyms.key").touch()
    with pytest.raises(UserError, match="is damaged"):
        pseudonym("4711", tmp_path)


def test_dicom_without_ids_is_of_the_people_that_its_folders_name(tmp_path):
    for person, visit in (("p1", 1), ("p1", 2), ("p2", 1), ("p2", 2)):
        write_series(tmp_path / "in" / person / f"visit{visit}", small_head(), PatientID="")
    table = rows(tmp_path, tmp_path / "in", label=0)
    assert sorted(table["subject_id"].value_counts()) == [2, 2]
    assert not table["subject_id"].str.contains("p1|p2").any()


def test_studies_that_share_a_folder_are_kept_apart_by_lists_of_files(tmp_path):
    heads = {generate_uid(): small_head(seed) for seed in (1, 2)}
    for study, head in heads.items():
        write_series(tmp_path / "in", head, name=study[-6:] + "-{}", study=study)
    table = rows(tmp_path, tmp_path / "in")
    assert table["image"].str.endswith(".recipe").all()
    shapes = sorted(float(read_scan(Path(path)).data.sum()) for path in table["image"])
    assert len(set(shapes)) == 2
    assert shapes == pytest.approx(
        sorted(float(head.get_fdata().clip(-1024).sum()) for head in heads.values()), rel=1e-3
    )


def test_a_root_that_is_itself_a_dicom_folder_has_a_name_of_its_own(tmp_path):
    names = set()
    for name in "ab":
        write_series(tmp_path / name, small_head(), StudyInstanceUID="")
        names |= set(rows(tmp_path, tmp_path / name)["scan_id"])
    assert len(names) == 2


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
    assert split_healthy(["a", "a", "b"], ["0", "1", "0"], {"train": 1.0}) == ["test", "test", "train"]


@pytest.mark.parametrize(
    ("root", "listed", "word"), [("gone", [], "gone"), (None, [], "no scans"), (None, ["x.nii"], "x.nii")]
)
def test_mistakes_name_the_place(tmp_path, root, listed, word):
    with pytest.raises(UserError, match=word):
        FolderCohort("mine", str(tmp_path / root) if root else None, listed).manifest(tmp_path, 1)


@pytest.mark.skipif(os.name != "posix", reason="names that other systems do not allow")
def test_odd_names_work_in_a_list_on_the_command_line(tmp_path, monkeypatch, capsys):
    from anomaly3d import prepare

    monkeypatch.chdir(tmp_path)
    names = ["h(1).nii", "h=2.nii", "head ct.nii", "头部.nii", "007.nii"]
    scans(tmp_path, *names)
    assert prepare.main(["dataset=folder", f"dataset.scans=[{','.join(names)}]", "data_dir=out", "workers=1"]) == 3
    told = capsys.readouterr().out
    assert "5 scans of 5 subjects: test 5 of 5" in told
    assert told.count("unreadable: the file is empty") == 5
