import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from anomaly3d.errors import UserError
from anomaly3d.scoring.anomaly_maps import Healthy
from anomaly3d.scoring.combination import COMBINED, Reference, with_combined

HEALTHY = pd.DataFrame(
    {
        "scan_id": list("abcd"),
        "subject_id": list("abcd"),
        "total": [1.0, 2.0, 3.0, 4.0],
        "exceedance": [30.0, 10.0, 40.0, 20.0],
        "other": 0.0,
    }
)
NEW = pd.DataFrame({"scan_id": ["x", "y"], "subject_id": ["x", "y"], "total": [2.5, 9.0], "exceedance": [35.0, 50.0]})


def test_it_is_stouffers_sum_of_p_values_among_healthy_scans():
    """x: two of four healthy scans reach its total, one its exceedance; y is above all. p moves by half of 1/5."""
    made = Reference.measure(HEALTHY, ["total", "exceedance"])
    expected = [
        (norm.isf(3 / 5 - 0.1) + norm.isf(2 / 5 - 0.1)) / 2**0.5,
        2 * norm.isf(1 / 5 - 0.1) / 2**0.5,
    ]
    assert with_combined(NEW, made)[COMBINED].tolist() == pytest.approx(expected)
    low = NEW.assign(total=0.0, exceedance=0.0)  # all healthy scans reach it: p = 1, still a number
    assert with_combined(low, made)[COMBINED].tolist() == pytest.approx([2**0.5 * norm.isf(0.9)] * 2)
    assert COMBINED not in with_combined(NEW, None)


def test_a_scan_of_the_reference_is_judged_by_the_others():
    made = Reference.measure(HEALTHY, ["total", "exceedance"])
    pasted = HEALTHY.assign(scan_id=["a+1", "b+1", "c+1", "d+1"], total=9.0)  # the same heads with something in them
    for table in (HEALTHY, pasted):
        left = with_combined(table, made)[COMBINED]
        for row, subject in enumerate("abcd"):
            others = Reference.measure(HEALTHY[HEALTHY["subject_id"] != subject], ["total", "exceedance"])
            assert left[row] == pytest.approx(with_combined(table[row : row + 1], others)[COMBINED].item())
        assert not np.allclose(left, with_combined(table.assign(subject_id="new"), made)[COMBINED])


def test_subjects_count_and_not_their_scans():
    """Four scans of one person weigh as much as one of another."""
    twice = pd.concat([HEALTHY, HEALTHY[:1].assign(scan_id="a2"), HEALTHY[:1].assign(scan_id="a3")])
    names = ["total", "exceedance"]
    once, often = (with_combined(NEW, Reference.measure(table, names))[COMBINED] for table in (HEALTHY, twice))
    assert once.tolist() == pytest.approx(often.tolist())


def test_it_is_kept_to_the_last_digit(tmp_path):
    exact = HEALTHY.assign(total=HEALTHY["total"] / 3)
    made = Reference.measure(exact, ["total", "exceedance"])
    full = np.ones((2, 3, 4))
    healthy = Healthy(4, full, {"residual": full}, {"residual": full}, {}, reference=made)
    healthy.save(tmp_path / "own.npz")
    kept = Healthy.load(tmp_path / "own.npz").reference
    assert kept.scores["total"].tolist() == made.scores["total"].tolist()
    assert kept.subjects == ()  # who they were stays at home
    pd.testing.assert_frame_equal(with_combined(NEW, kept), with_combined(NEW, made))
    assert healthy.without([]).reference is made


def test_a_score_that_there_is_not_is_named():
    with pytest.raises(UserError, match="no score 'peek'; there are total, exceedance, other"):
        Reference.measure(HEALTHY, ["total", "peek"])
