"""What an export tells of the people behind it."""

import pandas as pd
import pytest

from anomaly3d.bundle.cohort import counts_of, hidden


def people(sexes, split="train"):
    """A scan a person, of one site and age."""
    rows = [{"subject_id": f"{split}{k}", "sex": sex, "site": "A", "age": "50"} for k, sex in enumerate(sexes)]
    return pd.DataFrame(rows).assign(split=split)


def test_few_people_are_not_counted_nor_told_by_what_is_left():
    """Of 9 women and 2 men both are hidden: 11 less 9 would tell the men. Three people are not counted at all."""
    found = counts_of(pd.concat([people("F" * 9 + "M" * 2), people("FFM", "validation")]))
    assert [(c.split, c.kind, c.group, c.subjects) for c in found] == [
        ("train", "all", "all", 11),
        ("train", "site", "A", 11),
        ("train", "age", "40 to 60 years", 11),
        ("train", "sex", "F", None),
        ("train", "sex", "M", None),
        ("validation", "all", "all", None),
        ("validation", "site", "A", None),
        ("validation", "age", "40 to 60 years", None),
        ("validation", "sex", "F", None),
        ("validation", "sex", "M", None),
    ]
    assert all((c.scans is None) == (c.subjects is None) for c in found)


@pytest.mark.parametrize(
    ("subjects", "told"),
    [
        ([9, 5, 30], [True, True, True]),
        ([9, 2, 30], [False, False, True]),
        ([4, 3, 30], [False, False, True]),  # together 7, whoever they are
        ([1, 1, 6, 30], [False, False, False, True]),
        ([2], [False]),
        ([], []),
    ],
)
def test_a_hidden_group_has_company_of_five_people_or_more(subjects, told):
    assert [not few for few in hidden(subjects)] == told
