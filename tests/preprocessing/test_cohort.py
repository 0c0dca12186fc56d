"""Which prepared scans are used, and who may say so."""

import pandas as pd
import pytest

from anomaly3d.preprocessing.cohort import DESCRIPTION, PreparedCohort, prepared_files
from anomaly3d.preprocessing.outcome import Outcome
from anomaly3d.scans.manifest import read_manifest, write_manifest


def judge(numbers):
    return ["noisy"] if numbers["noise_hu"] > 10 else []


@pytest.fixture
def folder(tmp_path):
    """Prepared scans: a good one, two noisy ones, of which the manifest accepts one, and one that cannot be read."""
    rows = pd.DataFrame({"scan_id": ["good", "noisy", "wanted", "gone"], "quality": ["", "", "accept", "accept"]})
    rows = rows.assign(subject_id=rows["scan_id"], image=str(tmp_path / "ct.nii.gz"), label="0", split="test")
    (tmp_path / "ct.nii.gz").touch()
    write_manifest(rows.head(3), tmp_path / "manifest.csv")
    numbers = {"noise_hu": [1.0, 99, 99, None], "verdict": ["", "", "", "unreadable"], "reasons": ["", "", "", "text"]}
    quality = rows.reindex(columns=DESCRIPTION, fill_value="").assign(read_as="", content="", **numbers)
    quality.to_csv(tmp_path / "quality.csv", index=False)
    return tmp_path


def test_quality_control_is_overruled_by_the_manifest_and_by_name(folder):
    found = PreparedCohort.read(folder, judge)
    assert found.table["scan_id"].tolist() == ["good", "wanted"]
    assert found.quality["verdict"].tolist() == ["accepted", "rejected", "accepted", "unreadable"]
    assert found.quality["reasons"].tolist() == ["", "noisy", "overruled: noisy", "text"]
    named = PreparedCohort.read(folder, judge, ["noisy"])
    assert named.table["scan_id"].tolist() == ["good", "noisy", "wanted"]
    assert named.quality["reasons"].tolist()[1] == "overruled: noisy"


def test_rejected_scans_stay_in_where_they_are_asked_for(folder):
    found = PreparedCohort.read(folder, judge, rejected_too=True)
    assert found.table["scan_id"].tolist() == ["good", "noisy", "wanted"]
    assert found.quality["verdict"].tolist() == ["accepted", "rejected", "accepted", "unreadable"]


def test_a_table_from_before_scans_could_be_accepted_is_read(folder):
    pd.read_csv(folder / "quality.csv").drop(columns="quality").to_csv(folder / "quality.csv", index=False)
    assert PreparedCohort.read(folder, judge).table["scan_id"].tolist() == ["good"]


def test_scans_may_be_called_like_nothing(folder):
    """Many readers of tables take NA and null for empty cells."""
    for name in ("quality.csv", "manifest.csv"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("noisy", "NA").replace("good", "null"))
    found = PreparedCohort.read(folder, judge)
    assert found.quality["scan_id"].tolist() == ["null", "NA", "wanted", "gone"]
    assert found.table["scan_id"].tolist() == ["null", "wanted"]
    assert found.quality["noise_hu"].tolist()[:3] == [1, 99, 99]


def test_masks_of_an_earlier_manifest_are_not_listed(folder):
    """Files that lie there from before are not the scan's, where its outcome does not name them."""
    rows = read_manifest(folder / "manifest.csv").head(1)
    (folder / "lesion_mask").mkdir()
    (folder / "lesion_mask" / "good.nii.gz").touch()
    listed = prepared_files(rows, [Outcome("good", "", {}, "", files={"image": "x"})], folder).iloc[0]
    assert listed["image"] == str(folder / "image" / "good.nii.gz")
    assert listed["lesion_mask"] == ""
