"""What an export tells of the people behind it."""

import pandas as pd
import pytest

from anomaly3d.bundle.cohort import as_data, counts_of, hidden
from anomaly3d.bundle.write import without_places


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


def test_those_of_whom_nothing_is_said_are_a_group_too():
    found = [c for c in counts_of(people(["F"] * 9 + ["M"] * 7 + [""] * 2)) if c.kind == "sex"]
    assert [(c.group, c.subjects) for c in found] == [("F", 9), ("M", None), ("unknown", None)]
    assert [row["subjects"] for row in as_data(found)] == ["9", "not told", "not told"]
    assert [c.kind for c in counts_of(people([""] * 9))] == ["all", "site", "age"]


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/opt/x/strip --weights=/home/jane/w.pt {input} {output}", "strip --weights=w.pt {input} {output}"),
        ("tools/jane/strip -i {input} -o {output}", "strip -i {input} -o {output}"),
        ("'/home/jane/my tools/strip it' {input} {output}", "'strip it' {input} {output}"),
        ("strip --size=2 {input} {output}", "strip --size=2 {input} {output}"),
        ("'/my tools/strip' '--in={input} it' {output}", "strip '--in={input} it' {output}"),
    ],
)
def test_a_skull_strippers_command_names_no_place(command, told):
    assert without_places(command) == told


@pytest.mark.parametrize(
    ("subjects", "told"),
    [
        ([9, 5, 30], [True, True, True]),
        ([9, 2, 30], [False, False, True]),
        ([4, 3, 30], [False, False, True]),  # together 7, whoever they are
        ([1, 1, 6, 30], [False, False, False, True]),
        ([2], [False]),
        ([1] * 6 + [9, 30], [False] * 7 + [True]),  # six groups of six people would be one each
        ([], []),
    ],
)
def test_a_hidden_group_has_company_of_five_people_or_more(subjects, told):
    assert [not few for few in hidden(subjects)] == told
