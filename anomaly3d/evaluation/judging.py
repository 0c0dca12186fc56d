"""The test scans of a cohort, judged by what was learned from healthy scans; no test scan decides anything."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.learning import Learned
from anomaly3d.evaluation.localization import locate_scan, summarise_localization
from anomaly3d.evaluation.metrics import (
    LAYERED,
    LAYERED_NAME,
    auc_of,
    both_classes,
    ranked,
    summarise,
    whole_percent,
)
from anomaly3d.evaluation.options import Options
from anomaly3d.evaluation.thresholds import (
    conformal_rates,
    false_positives_by,
    operating_points,
    recall_by,
    site_shift,
)
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.folder import Trained
from anomaly3d.scans.manifest import SPLITS, TRUTH
from anomaly3d.scoring.anomaly_maps import ScanMaps, maps_of
from anomaly3d.scoring.calibration import OWN, calibration_folder
from anomaly3d.scoring.familiarity import INPUTS, UNLIKE, Familiar
from anomaly3d.scoring.inference import Inference, preprocessor_of
from anomaly3d.scoring.scan_scores import rescore, score_names
from anomaly3d.scoring.writer import RESCORED
from anomaly3d.statistics.auc import share
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import is_leader, say
from anomaly3d.system.workers import Workers, run_in_threads


@dataclass(frozen=True)
class Setting:
    """Which test scans are judged, and by whom.

    ``place`` is where in the ``run`` results go, ``name`` what a page calls the evaluation, ``synthetic`` whether the
    scans show no person; ``focus`` is the detector that the report is about, ``beside`` the others.
    """

    run: Path
    place: Path
    name: str
    synthetic: bool
    focus: Trained
    beside: list[Trained]
    inference: Inference

    @property
    def data(self) -> HeadCTDataModule:
        """The cohort."""
        return self.inference.data


@dataclass(frozen=True)
class Evaluated:
    """What a report is made from.

    ``out`` is where scores and volumes of the detector in focus are, ``table`` every score of the test scans, ``maps``
    their files, ``learned`` what they were judged by; ``others`` are the test tables of other detectors by label;
    ``metrics`` is what ``metrics.json`` holds.
    """

    setting: Setting
    out: Path
    table: pd.DataFrame
    maps: list[ScanMaps]
    learned: Learned
    others: dict[str, pd.DataFrame]
    metrics: dict[str, Any]


def judge(
    setting: Setting, learned: Mapping[str, Learned | None], options: Options, notes: list[str]
) -> Evaluated | None:
    """Score the test scans and write ``metrics.json``; None on the processes that only help with scoring.

    Args:
        learned: by label, of the detectors of which anything is known (None where ``learn`` or ``load`` gave that).
        notes: sentences about the cohort that a reader must know.
    """
    focus, data, workers = setting.focus, setting.data, options.workers
    say(f"evaluate: the test scans with {focus.label} and {len(setting.beside)} others")
    tables = {
        t.label: setting.inference.once(t, "test", setting.place / t.label, volumes=t.label in learned)
        for t in [focus, *setting.beside]
    }
    if not is_leader():
        return None
    own_parts = [part for part in score_names(tables[focus.label]) if part != "total"]
    maps = {label: maps_of(data.split("test"), setting.place / label) for label in learned}
    by_label = {label: known for label, known in learned.items() if known}
    for label, found in by_label.items():
        table = rescore(tables[label], maps[label], found.healthy, workers, f"{label}: scores")
        if label != focus.label:
            with written_whole(setting.place / label / RESCORED) as path:
                table.to_csv(path, index=False, float_format="%.17g")
            table[LAYERED], table[LAYERED_NAME] = table[found.chosen], found.chosen
        tables[label] = table
    known = by_label[focus.label]
    out, prepared = setting.place / focus.label, data.prepared
    familiar = Familiar.load(calibration_folder(focus.folder.path) / INPUTS)
    unlike = familiar.told(data.split("test"), prepared.quality, preprocessor_of(focus), workers)
    test = tables.pop(focus.label)
    test = test.assign(**{UNLIKE: [unlike.get(scan_id, "") for scan_id in test["scan_id"]]})
    with written_whole(out / RESCORED) as path:
        test.to_csv(path, index=False, float_format="%.17g")
    chosen = known.chosen if known.chosen != "total" else None
    metrics = {
        "focus": focus.name,
        "cohort": prepared.folder.parent.name,
        "thresholds_from": known.locked.site if known.locked else None,
        "detectors": {t.label: described(t) for t in [focus, *setting.beside]},
        **summarise(test, tables, set_aside(prepared), chosen, own_parts),
        **beyond_ranking(test, known),
        "localization": localize(data, test, maps[focus.label], known, out, workers),
        "flow": flow(prepared),
        UNLIKE: share_by_cohort(test, UNLIKE),
    }
    metrics["notes"] = [
        *filter(None, notes),
        *dense_told(known, preprocessor_of(focus)),
        *ages_told(maps[focus.label], known),
        *unsaid(test, known, bool(maps[focus.label]), metrics["localization"]),
    ]
    with written_whole(setting.place / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    return Evaluated(setting, out, test, maps[focus.label], known, tables, metrics)


def dense_told(learned: Learned, preprocessor: Preprocessor) -> list[str]:
    """That dense places are not judged, as a sentence, where that is so."""
    if learned.healthy.densest is None:
        return []
    hu = float(preprocessor.to_physical(np.array(learned.healthy.densest)))
    return [f"What is denser than {hu:.3g} HU (calcium, bone, metal) is not judged, nor what lies beside it."]


def ages_told(maps: list[ScanMaps], learned: Learned) -> list[str]:
    """That the healthy spread follows age, and for how many scans it cannot, as sentences."""
    if learned.healthy.ageing is None:
        return []
    unknown = sum(scan.age is None for scan in maps)
    notes = ["The healthy spread follows age."]
    if unknown:
        notes.append(
            f"{unknown} of {len(maps)} test scans are of unknown age: they are judged by the spread at the mean age, "
            "and what thresholds and p-values promise does not hold for them."
        )
    return notes


def unsaid(test: pd.DataFrame, learned: Learned, has_maps: bool, located: Mapping[str, Any]) -> list[str]:
    """What this evaluation cannot say and why, a sentence each."""
    rows, locked, notes = ranked(test), learned.locked, []
    there = {label: int((rows["label"] == label).sum()) for label in ("0", "1")}
    if rows.empty:
        notes.append("No test scan is labelled 0 or 1: there are scores, and nothing to hold them against.")
    elif not all(there.values()):
        only = "abnormal" if there["1"] else "without findings"
        notes.append(
            f"All {len(rows)} labelled test scans are {only}: there is no AUC, AP or oracle threshold, for which it "
            "takes scans of both kinds."
        )
    if locked is None:
        notes.append(
            f"No threshold is locked: there are no calibration scans for {learned.chosen}. What would be found and "
            "falsely flagged at a locked threshold, p-values, Dice and lesions found cannot be said; thresholds called "
            "oracle were chosen on these very test scans."
        )
    elif not locked.possible:
        notes.append(
            f"No threshold is possible: flagging {whole_percent(locked.rate)} of healthy scans takes {locked.fewest} "
            f"calibration scans, and there are {len(locked.scores)}."
        )
    if there["1"] and not located:
        why = (
            "no abnormal test scan has a lesion mask with voxels in the brain"
            if has_maps
            else "this detector has no maps"
        )
        notes.append(f"Where the lesion is cannot be judged: {why}.")
    return notes


def source_of(learned: Learned, cohort: str) -> str:
    """Whose healthy scans the locked threshold comes from, as a sentence; empty for none."""
    if not (locked := learned.locked):
        return ""
    count = f"{len(locked.scores)} calibration scans"
    if locked.site == OWN:
        return (
            f"Threshold and p-values come from {count} of the run's own cohort: what they promise is void for other "
            "scanners and people."
        )
    return f"Threshold and p-values come from {count} of this cohort, {cohort}."


def described(trained: Trained) -> dict[str, str]:
    """What tables say of a detector."""
    told = {"title": trained.lineage["title"], "role": trained.lineage["role"], "stage": trained.stage}
    return {**told, "model": trained.digest()}


def share_by_cohort(test: pd.DataFrame, column: str) -> dict[str, dict[str, Any]]:
    """Share of ranked test scans for which a text column says something, by cohort, with its interval."""
    rows = ranked(test)
    return {str(c): share((r[column] != "").to_numpy(), r["subject_id"].to_numpy()) for c, r in rows.groupby("cohort")}


def beyond_ranking(test: pd.DataFrame, learned: Learned) -> dict[str, Any]:
    """What thresholds do, whom they hit, and how every score ranks with (oracle) and without looking at labels."""
    rows = ranked(test)
    oracle = {n: auc_of(rows, n).as_json() for n in score_names(test)} if both_classes(rows) else {}
    found: dict[str, Any] = {
        "score": {
            "chosen": learned.chosen,
            "by": learned.by,
            "pseudo_auc": learned.ranking,
            "oracle_test_auc": oracle,
            "agreement": agreement(learned.ranking, oracle),
            "without_each": learned.without_each,
            "healthy_scans": learned.healthy.count,
        },
        "operating_points": operating_points(test, learned.scores, learned.calibrations),
        "site_shift": site_shift(test, learned.chosen),
    }
    if locked := learned.locked:
        found["conformal"] = conformal_rates(test, locked)
        if locked.possible:
            found["recall_by"] = recall_by(test, locked)
            found["false_positives_by"] = false_positives_by(test, locked)
    return found


def agreement(ranking: dict[str, float], oracle: dict[str, Any]) -> float | None:
    """Spearman's correlation between the ranking of scores by pasted anomalies and by test labels, if any."""
    both = [n for n in oracle if n in ranking]  # an earlier version kept the ranking, perhaps of fewer scores
    pasted, labelled = [ranking[n] for n in both], [oracle[n]["value"] for n in both]
    if len(both) < 3 or len(set(pasted)) < 2 or len(set(labelled)) < 2:
        return None
    return round(float(spearmanr(pasted, labelled).statistic), 3)


def localize(
    data: HeadCTDataModule, test: pd.DataFrame, maps: list[ScanMaps], learned: Learned, out: Path, workers: Workers
) -> dict[str, Any]:
    """How well anomaly maps find the lesions of test scans that have a mask; empty without maps or masks.

    Without a locked threshold, only what needs none.
    """
    rows = data.split("test").set_index("scan_id")
    wanted = rows.loc[ranked(test)["scan_id"]].reset_index()
    has_mask = (wanted["lesion_mask"] != "") & (wanted["label"] == "1")
    thresholds = learned.locked.voxel_thresholds if learned.locked else None
    wanted = wanted[has_mask | ((wanted["label"] == "0") & (thresholds is not None))]
    if not has_mask.any() or not maps:
        return {}
    files = {scan.scan_id: scan for scan in maps}
    masks = {r["scan_id"]: {m: r[m] for m in TRUTH if r[m] and r["label"] == "1"} for r in wanted.to_dict("records")}
    jobs = [(files[scan_id], kinds, learned.healthy, thresholds) for scan_id, kinds in masks.items()]
    found = [row for part in run_in_threads(locate_scan, jobs, workers, "localization") for row in part]
    if not found:
        return {}
    located = pd.DataFrame(found).merge(wanted[["scan_id", "subject_id"]], on="scan_id")
    located = located.sort_values(["scan_id", "map", "mask"])  # they came as they finished, and a sum has an order
    with written_whole(out / "localization.csv") as path:
        located.to_csv(path, index=False, float_format="%.6g")
    summary = summarise_localization(located)
    for mask in TRUTH:  # of the smallest no voxel is left at this resolution, or there was none: not shown
        there = int(((wanted[mask] != "") & (wanted["label"] == "1")).sum())
        for entry in summary.get(mask, {}).values():
            entry["n_vanished"] = there - entry["n_scans"]
    return summary


def flow(prepared: PreparedCohort) -> dict[str, dict[str, int]]:
    """By split: scans and subjects of the cohort, what quality control made of them, and how many are used."""
    used, found = prepared.table["split"].value_counts(), {}
    for split in SPLITS:
        rows = prepared.quality[prepared.quality["split"] == split]
        if not rows.empty:
            verdicts = rows["verdict"].value_counts()
            found[split] = {
                "scans": len(rows),
                "subjects": int(rows["subject_id"].nunique()),
                **{verdict: int(verdicts.get(verdict, 0)) for verdict in ("accepted", "rejected", "unreadable")},
                "used": int(used.get(split, 0)),
            }
    return found


def set_aside(prepared: PreparedCohort) -> pd.DataFrame:
    """The test scans that quality control rejected or that could not be read."""
    quality = prepared.quality
    used = (quality["verdict"] == "accepted") | (quality["group"] == "low_quality")
    return quality[(quality["split"] == "test") & ~used]
