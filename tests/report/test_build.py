"""Which scans the case figure shows."""

from pathlib import Path

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.judging import Evaluated, Setting
from anomaly3d.evaluation.learning import Learned
from anomaly3d.report.build import choose_cases
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
