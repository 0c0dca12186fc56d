"""Evaluate a run on a labelled cohort that it has never seen, by what it keeps of its own healthy scans."""

from dataclasses import replace
from pathlib import Path

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.errors import UserError
from anomaly3d.evaluation.judging import Evaluated, Setting, judge, source_of
from anomaly3d.evaluation.learning import Learned, folder_of
from anomaly3d.evaluation.options import Options
from anomaly3d.evaluation.run import others_of
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.folder import Trained
from anomaly3d.scoring.anomaly_maps import maps_of
from anomaly3d.scoring.calibration import calibrate_anew
from anomaly3d.scoring.inference import Inference, preprocessor_of
from anomaly3d.scoring.learned_from import namesakes, refuse_seen
from anomaly3d.system.progress import is_leader, say

PLACE = "evaluation_of"  # under a run: a folder for each other cohort
USED = ("calibration", "test")  # splits of another cohort that are used


def evaluate_elsewhere(
    run: Path, focus: Trained, prepared: PreparedCohort, synthetic: bool, options: Options
) -> Evaluated | None:
    """Judge another cohort's test scans; None on the processes that only help with scoring.

    Thresholds and p-values come from its own calibration scans, where it has some, which then also join those that say
    what is usual; else from the run's own.

    Args:
        synthetic: the cohort shows no person.

    Raises:
        UserError: no test scan, the run has never been evaluated, or scans that it learned from are among the cohort's.
    """
    data = HeadCTDataModule(prepared, options.batch, memory_gb=options.memory_gb)
    data.setup()
    data.require("test")
    cohort, beside, called = prepared.folder.parent.name, others_of(run, focus, data), named(prepared)
    kept = {t.label: found for t in [focus, *beside] if (found := Learned.load(t))}
    if focus.label not in kept:
        raise UserError(
            f"run {run.name} keeps nothing of what its healthy scans say of {focus.label}: run 'python -m "
            f"anomaly3d.evaluate run={run.name} detector={focus.name}' first, where the data it was trained with are"
        )
    used = prepared.table.loc[prepared.table["split"].isin(USED), "scan_id"]
    scans = prepared.quality[prepared.quality["scan_id"].isin(used)]
    refuse_seen(scans, focus)
    notes = [*told_of_splits(prepared), *namesakes(scans, focus)]
    inference = Inference(data, options.trainer)
    setting = Setting(run, run / PLACE / cohort, f"{run.name} on {called}", synthetic, focus, beside, inference)
    say(f"evaluate: {focus.lineage['title']} of run {run.name}, {focus.stage}, on {cohort}, into {setting.place}")
    learned: dict[str, Learned] = {}
    for trained in [focus, *beside]:
        if known := kept.get(trained.label):
            known = known.named(options.score if trained is focus else None)
            learned[trained.label] = at_home(trained, known, setting, options)
    known = learned[focus.label]
    notes += layer_kept(known, options, preprocessor_of(focus))
    return judge(setting, learned, options, [*notes, source_of(known, called), *voxels_kept(known, options)])


def at_home(trained: Trained, known: Learned, setting: Setting, options: Options) -> Learned:
    """What was learned, with the thresholds of the cohort's own calibration scans where it has some."""
    rate, voxel_ml = options.false_positive_rate, options.voxel_false_alarm_ml
    if setting.data.split("calibration").empty:
        return replace(known, calibrations=[replace(c, rate=rate) for c in known.calibrations])
    out = folder_of(setting.place / trained.label, "calibration")
    table = setting.inference.once(trained, "calibration", out, volumes=True)
    if not is_leader():
        return known
    scans = table, maps_of(setting.data.split("calibration"), out), known.healthy
    healthy, made = calibrate_anew(setting.place.name, known.scores, *scans, rate, voxel_ml, options.workers)
    return replace(known, healthy=healthy, calibrations=made)


def named(prepared: PreparedCohort) -> str:
    """A cohort by the names that its scans have, where they are few, and by its folder."""
    names, folder = sorted(set(prepared.table["cohort"]) - {""}), prepared.folder.parent.name
    return f"{' and '.join(names)} ({folder})" if 1 <= len(names) <= 3 else folder


def voxels_kept(learned: Learned, options: Options) -> list[str]:
    """That voxel thresholds are of another healthy volume than the one asked for, as a sentence."""
    locked, asked = learned.locked, options.voxel_false_alarm_ml
    if locked is None or locked.voxel_ml == asked:
        return []
    return [
        f"Voxel thresholds leave {locked.voxel_ml:g} ml of a healthy brain, as in the run's own evaluation, not "
        f"{asked:g}: that takes calibration scans of this cohort."
    ]


def layer_kept(learned: Learned, options: Options, preprocessor: Preprocessor) -> list[str]:
    """That what is judged, or by age, is as in the run's own evaluation and not as asked for, as sentences."""
    healthy, notes = learned.healthy, []
    if (healthy.ageing is not None) != options.by_age:
        kept = "follows" if healthy.ageing else "does not follow"
        notes.append(f"The healthy spread {kept} age, as in the run's own evaluation, whatever by_age says here.")
    if healthy.densest != options.densest(preprocessor):
        notes.append("What is too dense to be judged is as in the run's own evaluation, whatever densest_hu says here.")
    return notes


def told_of_splits(prepared: PreparedCohort) -> list[str]:
    """Which scans of the cohort are not used, as a sentence."""
    counts = prepared.table["split"].value_counts()
    unused = [f"{count} of the split {split}" for split, count in counts.items() if split not in USED]
    return [f"Not used, because the run learns nothing from this cohort: {', '.join(unused)}."] if unused else []
