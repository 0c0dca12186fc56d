"""Splits that are drawn from names: one a person, whoever else is there, and by the shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly3d.cohorts.names import split_by_name, split_healthy
from tests.conftest import QUICK

SPLITS = ("train", "validation", "calibration", "test")
SHARES = st.dictionaries(st.sampled_from(SPLITS), st.sampled_from([0.1, 0.25, 1.0, 3.0]), min_size=1)
SCANS = st.lists(
    st.tuples(st.sampled_from(["p1", "p2", "P3", "sub-04", "頭"]) | st.text(max_size=4), st.sampled_from("001"))
)


@QUICK
@given(scans=SCANS, more=SCANS, shares=SHARES)
def test_a_person_is_in_one_split_which_others_do_not_change(scans, more, shares):
    subjects, labels = [subject for subject, _ in scans], [label for _, label in scans]
    splits = split_healthy(subjects, labels, shares)
    assert splits == split_healthy(iter(subjects), iter(labels), dict(shares))
    assert len(set(zip(subjects, splits, strict=True))) == len(set(subjects))
    ill = {subject for subject, label in scans if label == "1"}
    for subject, split in zip(subjects, splits, strict=True):
        assert split in ({"test"} if subject in ill else set(shares))
    others = [scan for scan in more if scan[0] not in subjects]
    mixed = [*others, *reversed(scans)]
    again = split_healthy([s for s, _ in mixed], [label for _, label in mixed], shares)
    assert again[len(others) :] == splits[::-1]


@QUICK
@given(shares=SHARES, prefix=st.text(max_size=5))
def test_shares_are_kept_whatever_people_are_called(shares, prefix):
    drawn = [split_by_name(f"{prefix}{i}", shares) for i in range(1000)]
    for split, share in shares.items():
        assert drawn.count(split) / 1000 == pytest.approx(share / sum(shares.values()), abs=0.07)
    doubled = {split: 2 * share for split, share in shares.items()}
    assert [split_by_name(f"{prefix}{i}", doubled) for i in range(50)] == drawn[:50]
