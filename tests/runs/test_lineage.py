"""A phase is bound to what its scans show, not to their names alone."""

from pathlib import Path

import pandas as pd
import pytest

from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.lineage import data_hashes, require_same_data, same_data, split_hash, voxels_hash

SPLITS = ["train", "train", "validation", "labelled", "calibration", "test"]


def cohort(**content):
    """A scan a split, each of its own voxels but for those that are given."""
    ids = [f"s{number}" for number in range(len(SPLITS))]
    table = pd.DataFrame({"scan_id": ids, "subject_id": ids, "split": SPLITS})
    shown = [content.get(scan_id, f"voxels of {scan_id}") for scan_id in ids]
    return PreparedCohort(Path("data"), table, pd.DataFrame({"scan_id": [*ids, "rejected"], "content": [*shown, ""]}))


def test_scans_that_were_replaced_under_their_names_are_refused():
    lineage = data_hashes(cohort())
    require_same_data(lineage, cohort(), Path("model.pt"))
    for learned in ("s0", "s2", "s3"):
        with pytest.raises(UserError, match=r"replaced by others under the same names since model.pt was trained"):
            require_same_data(lineage, cohort(**{learned: "others"}), Path("model.pt"))
    for other in ("s4", "s5"):  # no network learns from them
        require_same_data(lineage, cohort(**{other: "others"}), Path("model.pt"))
    moved = cohort()
    moved.table.loc[0, "split"] = "validation"
    with pytest.raises(UserError, match="or their splits are not those"):
        require_same_data(lineage, moved, Path("model.pt"))


def test_where_it_is_not_known_what_scans_show_nothing_is_said():
    assert voxels_hash(cohort(s0="")) is None
    assert voxels_hash(PreparedCohort(Path("data"), cohort().table, pd.DataFrame())) is None
    require_same_data({"split_hash": split_hash(cohort().table)}, cohort(), Path("model.pt"))  # of an earlier version
    of_a, of_b, old = (
        {"split_hash": "s", "voxels_hash": "a"},
        {"split_hash": "s", "voxels_hash": "b"},
        {"split_hash": "s"},
    )
    assert same_data(of_a, of_a)
    assert same_data(of_a, old)
    assert same_data({**old, "voxels_hash": None}, of_a)
    assert not same_data(of_a, of_b)
    assert not same_data(old, {"split_hash": "t"})
