import numpy as np
import pandas as pd
import pytest

from experiments.comparison.rules import by_rules, with_fate

TABLE = pd.DataFrame(
    {
        "scan_id": list("abcdefg"),
        "subject_id": list("abcdefg"),
        "label": list("0001111"),
        "volumes": [0.1, 0.2, 0.6, 0.3, 0.9, 0.4, 0.5],
        "slice": [0.3, 0.1, 0.2, 0.4, 0.0, 0.25, 0.0],
        "mean": [0.1, 0.2, 0.3, 0.4, 0.05, 0.15, 0.5],
        "maximum": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
    }
)
DRAWN = dict(zip("abcdefg", (3, 4, 5, 3, 4, 5, 3), strict=True))


def lesion(*places):
    """A mask of 4 x 3 x 8 voxels with one voxel in each of some axial slices."""
    mask = np.zeros((4, 3, 8), bool)
    mask[2, 1, list(places)] = True
    return mask


def test_both_rules_by_hand():
    """The drawn slices of d (3) and f (5) hold lesion, that of e (4) does not; of g nothing is known."""
    table = with_fate(TABLE, DRAWN, {"d": lesion(2, 3), "e": lesion(3, 5), "f": lesion(5)})
    assert table["drawn"].tolist() == [3, 4, 5, 3, 4, 5, 3]
    assert table["left_out"].tolist() == ["", "", "", "", "lesion misses the slice", "", "no mask"]
    found = by_rules(table)
    paper, fair = found["paper"], found["fair"]
    assert paper["left_out"] == {"lesion misses the slice": 1, "no mask": 1}
    # d and f against a, b, c: 0.3 and 0.4 each beat two of 0.1, 0.2, 0.6; 0.4 beats three and 0.25 two of 0.3, 0.1, 0.2
    assert paper["auc"]["volumes"]["value"] == pytest.approx(4 / 6)
    assert paper["auc"]["slice"]["value"] == pytest.approx(5 / 6)
    assert paper["volumes_minus"]["slice"]["value"] == pytest.approx(-1 / 6)
    # d, e, f, g against a, b, c: 2, 3, 2, 2; by the mean 3, 0, 1, 3; by the maximum all
    values = {"volumes": 9 / 12, "mean": 7 / 12, "maximum": 1.0}
    assert {name: auc["value"] for name, auc in fair["auc"].items()} == pytest.approx(values)
    assert fair["volumes_minus"]["mean"]["value"] == pytest.approx(2 / 12)
    for rule, abnormal in ((paper, 2), (fair, 4)):
        for auc in rule["auc"].values():
            assert (auc["n_normal"], auc["n_abnormal"]) == (3, abnormal)
            assert auc["ci95"][0] < auc["value"] <= auc["ci95"][1]


def test_a_lesion_that_vanished_at_this_resolution_misses_every_slice():
    assert with_fate(TABLE[3:4], DRAWN, {"d": lesion()})["left_out"].tolist() == ["lesion misses the slice"]
