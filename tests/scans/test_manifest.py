import csv
import io
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import LESIONS, NOTHING, OPTIONAL, PATHS, REQUIRED, read_manifest, write_manifest
from tests.conftest import QUICK

ROWS = [
    {"scan_id": "a", "subject_id": "p1", "image": "a.nii.gz", "label": "0", "split": "train"},
    {"scan_id": "b", "subject_id": "p2", "image": "b.nii.gz", "label": "0", "split": "validation"},
    {"scan_id": "c", "subject_id": "p3", "image": "c.nii.gz", "label": "1", "split": "test"},
]


@pytest.fixture
def manifest(tmp_path):
    def write(*changes):
        table = pd.DataFrame(ROWS)
        for row, column, value in changes:
            table.loc[row, column] = value
        for name in ("a", "b", "c"):
            (tmp_path / f"{name}.nii.gz").touch()
        table.to_csv(tmp_path / "manifest.csv", index=False)
        return tmp_path / "manifest.csv"

    return write


def test_a_sound_manifest_is_completed(manifest, tmp_path):
    table = read_manifest(manifest())
    assert list(table["group"]) == ["normal", "normal", "tbi"]
    assert table["image"][0] == str(tmp_path / "a.nii.gz")
    write_manifest(table, tmp_path / "again.csv")
    assert pd.read_csv(tmp_path / "again.csv")["image"][0] == "a.nii.gz"
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "again.csv"), table[read_manifest(manifest()).columns])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((1, "scan_id", "a"), ["row 2, 3", "duplicate scan_id a"]),
        ((1, "subject_id", "p1"), ["row 2, 3", "subject p1", "train and validation"]),
        ((0, "label", "2"), ["row 2", "label"]),
        ((1, "lesions", "subdural"), ["row 3", "label 0 (without findings), but lesions names subdural"]),
        ((0, "label", "1"), ["row 2", "test split"]),
        (((0, "label", ""), (0, "lesions", "subdural")), ["row 2", "lesions names subdural", "do not belong to train"]),
        (((1, "label", ""), (1, "split", "labelled")), ["row 3: label is empty", "labelled", "0 or 1"]),
        (((1, "label", ""), (1, "split", "calibration")), ["row 3: label is empty", "calibration", "label 0"]),
        ((2, "split", "holdout"), ["row 4", "split"]),
        ((2, "image", "gone.nii.gz"), ["row 4", "gone.nii.gz"]),
        ((0, "scan_id", "../a"), ["row 2", "letters"]),
    ],
)
def test_each_problem_names_its_row(manifest, change, words):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest(*(change if isinstance(change[0], tuple) else (change,))))
    for word in words:
        assert word in str(caught.value)


def test_all_problems_are_listed_at_once(manifest):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest((0, "label", "7"), (2, "split", "nowhere")))
    assert "row 2" in str(caught.value)
    assert "row 4" in str(caught.value)


def test_rows_between_two_stray_quotes_are_missed(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    rows = ['1,p1,a.nii.gz,0,train,"fell', "2,p2,a.nii.gz,0,train,", '3,p3,a.nii.gz,0,train,3" cut']
    (tmp_path / "manifest.csv").write_text("\n".join(["scan_id,subject_id,image,label,split,note", *rows]) + "\n")
    with pytest.raises(UserError, match="row 2: a quote opens and the next one is rows below"):
        read_manifest(tmp_path / "manifest.csv")
    whole = [rows[0] + ' at home,\nby bike"', *rows[1:2]]
    (tmp_path / "manifest.csv").write_text("\n".join(["scan_id,subject_id,image,label,split,note", *whole]) + "\n")
    assert len(read_manifest(tmp_path / "manifest.csv")) == 2


def test_a_name_in_two_spellings_of_unicode_is_one_person(manifest):
    with pytest.raises(UserError, match="row 2, 3: subject M\u00fcller is in the splits train and validation"):
        read_manifest(manifest((0, "subject_id", "M\u00fcller"), (1, "subject_id", "Mu\u0308ller")))


def test_a_missing_column_is_named(tmp_path):
    pd.DataFrame(ROWS).drop(columns="label").to_csv(tmp_path / "manifest.csv")
    with pytest.raises(UserError, match="label"):
        read_manifest(tmp_path / "manifest.csv")


CLEAN = "scan_id,subject_id,image,label,split,site\n007,a1,a.nii.gz,0,train,Zürich\n008,a2,b.nii.gz,1,test,Zürich\n"


@pytest.mark.parametrize(
    ("name", "made"),
    {
        "clean": CLEAN.encode(),
        "byte-order mark": CLEAN.encode("utf-8-sig"),
        "UTF-16": CLEAN.encode("utf-16"),
        "Windows": CLEAN.encode("cp1252"),
        "semicolons": CLEAN.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),
        "tabs": CLEAN.replace(",", "\t").encode(),
        "bars": CLEAN.replace(",", "|").encode(),
        "empty rows": (CLEAN + ",,,,,\n\n,,,,,\n").encode(),
        "empty rows between": CLEAN.replace("\n008", "\n,,,,,\n\n008").encode(),
        "trailing commas": CLEAN.replace("\n", ",,\n").encode(),
        "spaces": CLEAN.replace(",", ", ").encode(),
        "numbers as decimals": CLEAN.replace(",0,", ",0.0,").replace(",1,", ",1.0,").encode(),
        "capitals": CLEAN.replace("train", "Train").replace("scan_id", "Scan ID").encode(),
        "quotes": CLEAN.replace("a.nii.gz", '"a.nii.gz"').encode(),
    }.items(),
)
def test_spreadsheets_are_read_as_if_they_were_clean(manifest, tmp_path, name, made):
    manifest()
    (tmp_path / "sheet.csv").write_bytes(made)
    table = read_manifest(tmp_path / "sheet.csv")
    assert table[["scan_id", "label", "split", "site"]].to_numpy().tolist() == [
        ["007", "0", "train", "Zürich"],
        ["008", "1", "test", "Zürich"],
    ]
    assert list(table["image"]) == [str(tmp_path / f"{name}.nii.gz") for name in "ab"]


def test_a_workbook_is_called_one(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="save the sheet as CSV"):
        read_manifest(tmp_path / "a.csv")


def test_rows_keep_their_numbers_below_empty_ones(manifest, tmp_path):
    manifest()
    (tmp_path / "sheet.csv").write_text(CLEAN.replace("\n008", "\n,,,,,\n\n008").replace("test", "nowhere"))
    with pytest.raises(UserError, match="row 5: split 'nowhere'"):
        read_manifest(tmp_path / "sheet.csv")


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("lesions", "SDH", "unknown lesion 'sdh': did you mean subdural"),
        ("lesions", "subdurall", "did you mean subdural"),
        ("lesions", "hemorrhage", "did you mean intraparenchymal"),
        ("lesions", "dragon", "known are epidural, subdural"),
        ("age", "045Y", "write 45"),
        ("age", "018M", "write 1.5"),
        ("age", "89+", "write 89"),
        ("age", "unknown", "leave it empty"),
        ("age", "-1", "leave it empty"),
        ("age", "451", "no number of years that a person reaches"),
        ("sex", "1", "'F', 'M'"),
        ("sex", "divers", "'F', 'M'"),
        ("group", "post-operative", "did you mean postoperative"),
        ("split", "training", "did you mean train"),
        ("split", "val", "did you mean validation"),
        ("label", "Normal", "did you mean 0"),
    ],
)
def test_values_that_would_vanish_are_mistakes_with_the_nearest_known_one(manifest, column, value, words):
    with pytest.raises(UserError, match="row 4: ") as caught:
        read_manifest(manifest((2, column, value)))
    assert words in str(caught.value)


def test_what_is_meant_without_doubt_is_taken(manifest):
    table = read_manifest(
        manifest(
            (2, "lesions", "Subdural, epidural"),
            (2, "sex", "male"),
            (1, "sex", "f"),
            (2, "age", "NA"),
            (1, "age", "61,5"),
        )
    )
    assert table["lesions"][2] == "subdural;epidural"
    assert list(table["sex"]) == ["", "F", "M"]
    assert list(table["age"][1:]) == ["61.5", ""]


def test_many_wrong_ages_are_not_all_listed(manifest):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest(*((3 + n, "age", f"{n}Y") for n in range(30))))
    assert str(caught.value).count("is not a number of years") == 6
    assert "30 ages in all are like these" in str(caught.value)


@pytest.mark.parametrize(
    ("column", "meant"), [("gender", "sex"), ("Patient Age", "age"), ("lesion_masks", "lesion_mask")]
)
def test_columns_that_others_call_otherwise_are_not_left_out_silently(manifest, column, meant):
    with pytest.raises(UserError, match=f"{meant}. Rename"):
        read_manifest(manifest((0, column, "1")))


def test_a_lesion_mask_is_of_one_scan(manifest, tmp_path):
    (tmp_path / "m.nii.gz").touch()
    one = [(0, "lesion_mask", "m.nii.gz"), (2, "lesion_mask", "m.nii.gz")]  # of a healthy scan it is empty
    assert read_manifest(manifest(*one))["lesion_mask"][2].endswith("m.nii.gz")
    new = {"scan_id": "d", "subject_id": "p4", "image": "a.nii.gz", "label": "1", "split": "test"}
    again = [*one, *((3, name, value) for name, value in new.items()), (3, "lesion_mask", "m.nii.gz")]
    with pytest.raises(UserError, match=r"row 4, 5: lesion_mask m.nii.gz is that of several scans"):
        read_manifest(manifest(*again))


@pytest.mark.parametrize("group", ["low_quality", "postoperative", "tbi"])
@pytest.mark.parametrize("row", [0, 1])
def test_other_groups_are_kept_out_of_what_is_learned_from(manifest, group, row):
    with pytest.raises(UserError, match=f"row {row + 2}: scans of the group {group} belong to the test split"):
        read_manifest(manifest((row, "group", group)))


def test_one_person_in_two_spellings_is_one(manifest):
    with pytest.raises(UserError, match="train and validation"):
        read_manifest(manifest((0, "subject_id", " p7"), (1, "subject_id", "P7")))


@pytest.mark.parametrize("typed", ["lesionmask", "Lesions mask", "brainmask", "ages"])
def test_a_column_that_is_almost_known_is_a_mistake_and_others_are_left_alone(manifest, typed):
    with pytest.raises(UserError, match="unknown column"):
        read_manifest(manifest((2, typed, "x")))
    assert "scanner" in read_manifest(manifest((2, "scanner", "x")))


def test_paths_from_windows_and_from_home(manifest, tmp_path, monkeypatch):
    path = manifest((0, "image", "ct\\a.nii.gz"), (1, "image", "~/b.nii.gz"))
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "a.nii.gz").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert list(read_manifest(path)["image"])[:2] == [str(tmp_path / "ct" / "a.nii.gz"), str(tmp_path / "b.nii.gz")]


@pytest.mark.parametrize(
    "name", ["../a", "..", "/etc/a", "a/b", "a\\b", "a\0b", ".a", ".99999.a", "a" * 200, "C:a", "a b", "é"]
)
def test_a_scan_is_not_called_by_a_way_out_of_its_folder(tmp_path, name):
    (tmp_path / "a.nii").write_bytes(b"x")
    path = tmp_path / "m.csv"
    path.write_text(f"scan_id,subject_id,image,label,split\n{name},s,a.nii,0,test\n")
    with pytest.raises(UserError, match=r"row 2: scan_id may hold only"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a,s,a\0.nii,0,test", "image not found"),
        ("a,s,a.nii,0,../test", "split '../test' must be one of"),
    ],
)
def test_other_names_that_are_none_are_problems_of_their_rows(tmp_path, row, words):
    (tmp_path / "a.nii").write_bytes(b"x")
    (tmp_path / "m.csv").write_text(f"scan_id,subject_id,image,label,split\n{row}\n")
    with pytest.raises(UserError, match=words):
        read_manifest(tmp_path / "m.csv")


def test_paths_come_back_absolute_from_wherever_the_manifest_is_named(manifest, tmp_path, monkeypatch):
    manifest((1, "image", "ct/../b.nii.gz"))
    (tmp_path / "ct").mkdir()
    monkeypatch.chdir(tmp_path / "ct")
    assert list(read_manifest(Path("../manifest.csv"))["image"])[:2] == [str(tmp_path / f"{n}.nii.gz") for n in "ab"]


@pytest.mark.parametrize("header", ["Label", " label ", "label"])
def test_a_column_that_is_there_twice_is_a_mistake(manifest, tmp_path, header):
    path = manifest()
    path.write_text(path.read_text().replace("split\n", f"split,{header}\n").replace("train\n", "train,1\n"))
    with pytest.raises(UserError, match=r"the column\(s\) label twice"):
        read_manifest(path)


def test_a_comma_without_quotes_is_a_mistake_and_loses_nothing(manifest):
    path = manifest((0, "lesions", ""), (1, "lesions", ""))
    path.write_text(path.read_text().replace("train,\n", "train,epidural,subdural\n"))
    with pytest.raises(UserError, match="more values than the header has columns: put quotes around values that hold"):
        read_manifest(path)


@pytest.mark.parametrize("image", ["~nobody-of-that-name/a.nii.gz", "a" * 5000 + ".nii.gz", "a\0.nii.gz"])
def test_a_path_that_no_system_has_is_not_found(manifest, image):
    with pytest.raises(UserError, match="row 2: image not found"):
        read_manifest(manifest((0, "image", image)))


def test_a_manifest_that_is_no_file_is_a_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "gone.csv", tmp_path / ("a" * 5000), Path("~nobody-of-that-name/a.csv")):
        with pytest.raises(UserError, match="is not a file that can be read"):
            read_manifest(path)


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=6).filter(
    lambda text: text.lower() not in NOTHING
)
ROW = st.fixed_dictionaries(
    {
        "scan_id": st.from_regex(r"[A-Za-z0-9._-]{1,6}", fullmatch=True).filter(lambda name: name[0] != "."),
        "subject_id": WORDS,
        "image": st.sampled_from(["a.nii.gz", "b.nii.gz", "of p1/c, 2.nii.gz"]),
        "split": st.sampled_from(["train", "validation", "calibration", "test"]),
        "lesion_mask": st.sampled_from(["", "a.nii.gz"]),
        "site": WORDS,
        "cohort": WORDS,
        "age": st.sampled_from(["", "0", "61.5", "130"]),
        "sex": st.sampled_from(["", "F", "M"]),
        "lesions": st.lists(st.sampled_from(LESIONS), max_size=3).map(";".join),
    }
)


@QUICK
@given(rows=st.lists(ROW, min_size=1, max_size=5, unique_by=lambda row: row["scan_id"].lower()))
def test_written_rows_come_back(tmp_path, rows):
    """A label, group and findings that suit the split; one split a person."""
    (tmp_path / "of p1").mkdir(exist_ok=True)
    for name in ("a.nii.gz", "b.nii.gz", "of p1/c, 2.nii.gz"):
        (tmp_path / name).touch()
    table = pd.DataFrame(rows).reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    table["subject_id"] = [f"p{i}-{name}" for i, name in enumerate(table["subject_id"])]
    ill = table["split"] == "test"
    table["label"], table["group"] = ill.map({True: "1", False: "0"}), ill.map({True: "tbi", False: "normal"})
    table["lesions"] = table["lesions"].where(ill, "")
    table["cohort"] = table["cohort"].replace("", "study")
    for column in PATHS:
        table[column] = [str(tmp_path / path) if path else "" for path in table[column]]
    write_manifest(table, tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "manifest.csv"), table, check_dtype=False)
    split = table["split"].replace({"train": "validation"})
    if (table["split"] == "train").any():  # the same person in another split
        other = table.assign(split=split, scan_id=[f"{name}-2" for name in table["scan_id"]])
        write_manifest(pd.concat([table, other]), tmp_path / "manifest.csv")
        with pytest.raises(UserError, match="all scans of a person belong to one split"):
            read_manifest(tmp_path / "manifest.csv")


CELLS = st.text(max_size=5) | st.sampled_from(
    ["a.nii.gz", "~x", "0", "1e400", "nan", "train", "\0", '"', "1;2", "\r\n"]
)
HEADS = st.sampled_from([*REQUIRED, *OPTIONAL, "Label", "scan id", "", "label.1", "Unnamed: 0"]) | st.text(max_size=4)


@QUICK
@given(
    header=st.lists(HEADS, max_size=8),
    whole=st.booleans(),
    rows=st.lists(st.lists(CELLS, max_size=12), max_size=4),
    separator=st.sampled_from(",;\t|"),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "cp1252"]),
    junk=st.binary(max_size=20),
)
def test_junk_is_a_sentence_and_never_a_traceback(tmp_path, header, whole, rows, separator, encoding, junk):
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([[*(REQUIRED if whole else ()), *header], *rows])
    for raw in (text.getvalue().encode(encoding, "ignore"), text.getvalue().encode("utf-8", "ignore") + junk, junk):
        (tmp_path / "junk.csv").write_bytes(raw)
        try:
            table = read_manifest(tmp_path / "junk.csv")
        except UserError as error:
            assert "junk.csv" in str(error)  # noqa: PT017  either is right, but nothing else
        else:
            assert set(table) >= {*REQUIRED, *OPTIONAL}


def test_a_name_that_is_no_text_is_a_sentence_that_names_the_file(tmp_path):
    """A folder from a system of another encoding."""
    scan = Path(os.fsdecode(os.fsencode(tmp_path) + b"/kopf-\xfc.nii.gz"))
    table = pd.DataFrame({"scan_id": ["a"], "subject_id": "p", "image": str(scan), "label": "0", "split": "train"})
    with pytest.raises(UserError, match=r"kopf-\\udcfc\.nii\.gz' is not in utf-8: rename the file"):
        write_manifest(table, tmp_path / "manifest.csv")
    assert not (tmp_path / "manifest.csv").exists()


def test_what_is_wrong_in_many_rows_is_said_once(manifest):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest((0, "age", "old"), (2, "age", "old"), (2, "split", "tset")))
    assert "row 2, 4: age 'old'" in str(caught.value)
    assert "did you mean test" in str(caught.value)
    assert "belong to the test split only" not in str(caught.value)
