"""Evaluate a run: learn from its healthy splits what is usual, then judge the test scans by it."""

from dataclasses import replace
from pathlib import Path

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.errors import UserError
from anomaly3d.evaluation.judging import Evaluated, Setting, judge
from anomaly3d.evaluation.learning import REFERENCE, Learned, chooses, learn
from anomaly3d.evaluation.options import Options
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.folder import Trained, find_trained
from anomaly3d.runs.lineage import require_same_data, same_data
from anomaly3d.scoring.calibration import calibration_folder
from anomaly3d.scoring.familiarity import INPUTS, Familiar, input_statistics
from anomaly3d.scoring.inference import Inference, preprocessor_of
from anomaly3d.scoring.learned_from import keep_seen
from anomaly3d.scoring.scan_scores import FEWEST
from anomaly3d.system.progress import is_leader, say
from anomaly3d.system.workers import Workers

ROLES = ("method", "trivial", "upper", "oracle")  # in the order of the tables


def evaluate_run(run: Path, focus: Trained, prepared: PreparedCohort, options: Options) -> Evaluated | None:
    """Evaluate the detectors of a run on the test scans of its own cohort, and keep beside each what it learned.

    None where the cohort has no test scan, and on the processes that only help with scoring.

    Raises:
        UserError: splits are empty or not those that were trained with, or a score that the detector does not have.
    """
    data = HeadCTDataModule(prepared, options.batch, memory_gb=options.memory_gb)
    data.setup()
    data.require("train", "validation")
    require_same_data(focus.lineage, prepared, focus.folder.path)
    place = run / "evaluation"
    say(f"evaluate: {focus.lineage['title']} of run {run.name}, {focus.stage}, into {place / focus.label}")
    beside = others_of(run, focus, data)
    setting = Setting(run, place, run.name, focus.lineage["synthetic"], focus, beside, Inference(data, options.trainer))
    learned = {focus.label: learn(focus, data, setting.inference, place / focus.label, options)}
    for other in filter(chooses, beside):
        label, anew = other.label, replace(options, score=None)
        learned[label] = learn(other, data, setting.inference, place / label, anew)
    if is_leader():
        keep(setting, learned, options.workers)
    if data.split("test").empty:
        say(
            "the cohort has no test scan: what is usual in healthy scans is now kept with the run; labelled scans of "
            f"another cohort are judged by it with 'python -m anomaly3d.evaluate run={run.name} dataset=...'"
        )
        return None
    return judge(setting, learned, options, few_subjects(data))


def few_subjects(data: HeadCTDataModule) -> list[str]:
    """What cannot be learned from validation scans of few people, as a sentence."""
    count = data.split("validation")["subject_id"].nunique()
    if count >= FEWEST:
        return []
    usual = ", and what is usual in maps is one person's" if count == 1 and data.split(REFERENCE).empty else ""
    people = "1 subject" if count == 1 else f"{count} subjects"
    return [f"Validation scans are of {people}: to choose a score in place of A(x) takes {FEWEST}{usual}."]


def keep(setting: Setting, learned: dict[str, Learned | None], workers: Workers) -> None:
    """Keep beside each detector what was learned for it, and what its training scans are like."""
    data, preprocessor = setting.data, preprocessor_of(setting.focus)
    statistics = input_statistics(data.split("train"), data.prepared.quality, preprocessor.reasons, workers)
    familiar = Familiar.measure(statistics)
    for trained in [setting.focus, *setting.beside]:
        if (found := learned.get(trained.label)) is None:
            continue
        if trained is setting.focus or not named_by_user(trained):
            found.save(trained)
        familiar.save(calibration_folder(trained.folder.path) / INPUTS)
        keep_seen(trained, data.prepared)


def named_by_user(trained: Trained) -> bool:
    """Whether a user has named the score of a detector's thresholds, which then stay; not of files that are damaged, or
    left by an evaluation that was interrupted, as this one mends them."""
    try:
        before = Learned.load(trained)
    except UserError:
        return False
    return before is not None and before.by == "config"


def others_of(run: Path, focus: Trained, data: HeadCTDataModule) -> list[Trained]:
    """What stands beside a detector: its own earlier stages, and all others of the run on the same data, by role.

    A detector that was trained with other data, or that reads what the test scans do not have, is left out.
    """
    found, test = [], data.split("test")
    for trained in find_trained(run):
        if trained.label == focus.label or (trained.earlier and trained.name != focus.name):
            continue
        same = trained.lineage["prepared"] == focus.lineage["prepared"]
        if not (same and same_data(trained.lineage, focus.lineage)):
            say(f"{trained.label} of this run was trained with other scans and is left out")
        elif lacking := [(k, n) for k in trained.lineage["reads"] if (n := int((test[k] == "").sum()))]:
            kind, count = lacking[0]
            say(f"{trained.label} of this run is left out: {count} of {len(test)} test scans have no {kind}")
        else:
            found.append(trained)
    return sorted(found, key=lambda t: (t.name != focus.name, ROLES.index(t.lineage["role"])))
