"""Which scans the case figure shows."""

from pathlib import Path

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.callbacks import read_scores
from anomaly3d.scoring.inference import prepared_folder
from anomaly3d.runs.lineage import PhaseFolder
from anomaly3d.report.build import Context, choose_cases


def test_cases_are_ranked_scans_and_without_any_those_there_are(tiny_run, places):
    folder, data_dir = PhaseFolder(tiny_run / "finetune"), Path(places[0].split("=")[1])
    lineage = folder.read()
    data = HeadCTDataModule(prepared_folder(lineage, folder.path / "config.yaml", data_dir), 1, 1)
    context = Context("tiny", tiny_run, tiny_run / "evaluation", data, lineage, None)
    table = read_scores(context.out / "scores.csv").sort_values("label").assign(lesions="", total=[1.0, 2, 3, 4, 5])
    faulty = table.assign(group=["low_quality", *table["group"][1:]])

    def titles(cases):
        return [case.title.replace("\nscore", "") for case in cases]

    ill = [f"abnormal {score}.000" for score in (5, 4, 3)]
    assert titles(choose_cases(faulty, context)) == [*ill, "normal 2.000"]
    unknown = choose_cases(table.assign(label=""), context)
    assert titles(unknown) == [f"unlabelled {score}.000" for score in (5, 4, 2, 1)]
