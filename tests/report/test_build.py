"""Which scans the case figure shows, and what tables and page make of what is missing."""

from pathlib import Path

import pandas as pd
import pytest

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.judging import Evaluated, Setting
from anomaly3d.evaluation.learning import Learned
from anomaly3d.report.build import choose_cases
from anomaly3d.report.page import Page, View, scan_rows
from anomaly3d.report.tables import choice, false_positives
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.inference import Inference, prepared_of
from anomaly3d.scoring.writer import read_scores


def test_cases_are_ranked_scans_and_without_any_those_there_are(tiny_run, places):
    focus = choose_trained(tiny_run, None)
    data = HeadCTDataModule(prepared_of(focus, Path(places[0].split("=")[1])), 1)
    data.setup()
    out = tiny_run / "evaluation" / "fanogan"
    table = read_scores(out / "scores.csv").sort_values("label").assign(lesions="", total=[5.393e-4, 2, 3, 4, 5])
    faulty = table.assign(group=["low_quality", *table["group"][1:]])

    def titles(table):
        setting = Setting(tiny_run, out.parent, "tiny", True, focus, [], Inference(data, {}))
        learned = Learned(None, {}, {}, "total", "pseudo-anomalies", [])
        cases = choose_cases(Evaluated(setting, out, table, [], learned, {}, {}))
        return [case.title.replace("\nA(x)", "") for case in cases]

    ill = ["highest: found first 3.00", "highest: found first 4.00", "highest: found first 5.00"]
    assert titles(faulty) == [
        "no findings, highest 2.00",
        ill[0].replace("highest: found", "lowest: missed"),
        *ill[1:],
    ]
    unlabelled = [
        f"unlabelled, {which} {score}"
        for which, score in zip(["lowest"] * 2 + ["highest"] * 2, ("0.000539", "2.00", "4.00", "5.00"), strict=True)
    ]
    assert titles(table.assign(label="")) == unlabelled


@pytest.mark.parametrize("flagged", [None, pd.Series([True, False])])
def test_the_table_of_scans_begins_with_what_matters_and_has_no_empty_column(flagged):
    empty = dict.fromkeys(("lesions", "lesion_ml", "age", "sex", "group"), "")
    rows = [
        {"scan_id": "a", "label": "1", "cohort": "x", "total": 8.5e-05, "unlike_training": "noise 9", "p": 0.1} | empty
    ]
    rows.append(rows[0] | {"scan_id": "b", "total": 2.0, "unlike_training": ""})
    metrics = {"score": {"chosen": "total"}, "results": {"part": {}}}
    table = pd.DataFrame(rows)
    page = Page("run", "", metrics, table, flagged, {}, {}, {}, View((1.0, 0.0), "HU", 3.0), [], [])
    columns, (first, second) = scan_rows(page)
    judged = ["at threshold"] if flagged is not None else []
    assert columns == ["scan_id", *judged, "total", "p", "cohort", "unlike_training"]
    assert (first["id"], second["cells"][-1]) == ("b", "noise 9")
    assert second["cells"][:2] == (["a", "found"] if judged else ["a", "8.5e-05"])
    assert "A(x) 8.5e-05" in second["title"]


def test_what_cannot_be_said_is_left_out_of_tables():
    score = {"chosen": "total", "by": "pseudo", "healthy_scans": 3, "agreement": None, "without_each": {}}
    table = choice({"score": score | {"oracle_test_auc": {}, "pseudo_auc": {"total": 0.5}}})
    assert "None" not in table.note
    assert (table.columns, table.rows) == (("Score", "AUC, pasted anomalies"), [("total", "0.500")])
    nobody = {"value": None, "n": 0, "ci95": [None, None]}
    assert not false_positives({"false_positives_by": {"all": nobody}}).rows
