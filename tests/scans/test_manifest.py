import pandas as pd
import pytest

from anomaly3d.errors import UserError
from anomaly3d.scans.manifest import read_manifest, write_manifest

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
        ((0, "label", "1"), ["row 2", "test split"]),
        ((2, "split", "holdout"), ["row 4", "split"]),
        ((2, "image", "gone.nii.gz"), ["row 4", "gone.nii.gz"]),
        ((0, "scan_id", "../a"), ["row 2", "letters"]),
    ],
)
def test_each_problem_names_its_row(manifest, change, words):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest(change))
    for word in words:
        assert word in str(caught.value)


def test_all_problems_are_listed_at_once(manifest):
    with pytest.raises(UserError) as caught:
        read_manifest(manifest((0, "label", "7"), (2, "split", "nowhere")))
    assert "row 2" in str(caught.value)
    assert "row 4" in str(caught.value)


def test_a_missing_column_is_named(tmp_path):
    pd.DataFrame(ROWS).drop(columns="label").to_csv(tmp_path / "manifest.csv")
    with pytest.raises(UserError, match="label"):
        read_manifest(tmp_path / "manifest.csv")
