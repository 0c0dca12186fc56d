"""New scans through a trained detector: scores, p-values, maps on the scan's own grid."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from anomaly3d.cohorts.names import digest
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import DESCRIPTION, PreparedCohort, Study, copies, tell_read_as
from anomaly3d.preprocessing.scan import read_transform
from anomaly3d.runs.folder import Trained
from anomaly3d.scans.dicom_results import write_results
from anomaly3d.scans.manifest import read_manifest, read_text
from anomaly3d.scans.nifti import voxels
from anomaly3d.scans.readers import read_image
from anomaly3d.scoring.anomaly_maps import (
    RESIDUAL,
    Healthy,
    ScanMaps,
    maps_of,
    standardised_maps,
    standardised_name,
)
from anomaly3d.scoring.calibration import Calibration, calibration_folder, load_calibration
from anomaly3d.scoring.clusters import SMALLEST_ML, own_grid_clusters
from anomaly3d.scoring.familiarity import INPUTS, UNLIKE, Familiar
from anomaly3d.scoring.inference import Inference
from anomaly3d.scoring.learned_from import LEARNED_IN, learned_in
from anomaly3d.scoring.scan_scores import rescore, score_names
from anomaly3d.scoring.way_back import Found, own_grid_maps
from anomaly3d.statistics.conformal import discoveries
from anomaly3d.system.files import mark_output, written_whole
from anomaly3d.system.progress import say, track
from anomaly3d.system.quiet import hush
from anomaly3d.system.workers import Workers

PICTURES = "viewer.json"  # beside a scan's maps: what the page shows of it
OF_PHANTOMS = (
    "the detector learned from phantoms: to it every head of a person is unusual, so p-values and flags say nothing "
    "about people; train on healthy scans of your own scanners"
)
LOCK = ".lock"  # in ``out``: of two calls one waits
INFERENCE = "inference"  # under ``out``: scores of the last call's scans, reconstructions in MNI space
JUDGED = ["score_name", "score", "p_value", "flagged", "discovery", "site"]
IN_SCOPE = "in_scope"  # whether a scan is one of those that the detector was made for: quality control accepts it
DIGITS = 12  # of a model's SHA-256, by which a table says whose scores it holds
FALSE_DISCOVERIES = 0.1  # share of a batch's discoveries that may be healthy


@dataclass(frozen=True)
class ScoringJob:
    """New scans for a detector.

    ``study`` are the scans, to be prepared as the detector's own were; ``out`` is where results go; ``batch``,
    ``memory_gb`` and ``trainer`` are those of the command's config; clusters below ``smallest_cluster_ml`` are left
    out; ``dicom`` asks for maps and clusters of DICOM scans as DICOM too.
    """

    trained: Trained
    study: Study
    out: Path
    batch: int
    trainer: Mapping[str, Any]
    memory_gb: float | None = None
    smallest_cluster_ml: float = SMALLEST_ML
    dicom: bool = False


@dataclass(frozen=True)
class NewScans:
    """Scans outside of the run's cohort that its detector has scored: a row and its maps for each usable scan."""

    images: pd.Series  # source of each scan by ``scan_id``
    prepared: PreparedCohort
    table: pd.DataFrame
    maps: list[ScanMaps]

    def in_scope(self) -> pd.Series:
        """Of each row of ``table``, whether quality control accepts its scan."""
        return self.table["scan_id"].isin(self.prepared.with_verdict("accepted")["scan_id"])


@dataclass(frozen=True)
class Scored:
    """New scans with their rows and maps written; ``known`` is of ``load_calibration``, ``code`` the command's exit
    code."""

    new: NewScans
    known: tuple[Healthy, Calibration] | None
    code: int


def score_new(job: ScoringJob) -> NewScans:
    """Prepare the job's scans and score what can be used, which is what its study keeps.

    Raises:
        UserError: no scans, or another scan of the same name was scored before.
    """
    prepared = with_brain(job.study.prepare())
    manifest = read_manifest(job.study.cohort.place(job.study.data_dir))
    images = manifest.set_index("scan_id")["image"]
    check_names(sources_of(images), job.out)
    out, table, maps = job.out / INFERENCE, pd.DataFrame({"scan_id": pd.Series(dtype=str)}), []
    if not prepared.table.empty:
        data = HeadCTDataModule(prepared, job.batch, memory_gb=job.memory_gb)
        data.setup()
        table = Inference(data, job.trainer).run(job.trained.load(), "test", out, volumes=True)
        maps = maps_of(data.split("test"), out)
    return NewScans(images, prepared, table, maps)


def with_brain(prepared: PreparedCohort) -> PreparedCohort:
    """Without scans of whose brain no voxel is left, which have no score."""
    kept = [bool(voxels(path).any()) for path in prepared.table["brain_mask"]]
    return replace(prepared, table=prepared.table.loc[kept].reset_index(drop=True))


def judge(new: NewScans, trained: Trained, site: str, workers: Workers, learned: Collection[str]) -> pd.DataFrame:
    """The scores with the columns ``JUDGED``, if a threshold is known.

    ``flagged`` holds for one scan; ``discovery`` for a batch of several: of all, at most ``FALSE_DISCOVERIES`` are
    expected to be healthy (Benjamini-Hochberg). Scans that quality control rejects have the score alone, because
    healthy scans like them were not measured, and so have those that the run ``learned`` from and, where the healthy
    spread follows age, those of unknown age.
    """
    known = load_calibration(trained, site)
    if known is None or new.table.empty:
        return new.table
    healthy, calibration = known
    scores = rescore(new.table, new.maps, healthy, workers, "scores")[calibration.score]
    inside = new.in_scope() & ~new.table["scan_id"].isin([*learned, *without_age(new, healthy)])
    flags = calibration.flags(scores)
    p = pd.Series(calibration.p_values(scores.to_numpy(float)), scores.index)
    found = pd.Series(discoveries(p[inside].to_numpy(), FALSE_DISCOVERIES), p.index[inside])
    if len(found) < 2:
        found = found[:0]  # one scan stands out among nobody
    return new.table.assign(
        score_name=calibration.score,
        score=scores,
        p_value=p.where(inside),
        flagged=None if flags is None else flags.where(inside, None),
        discovery=found.reindex(p.index),
        site=site,
    )


def without_age(new: NewScans, healthy: Healthy) -> list[str]:
    """Scans of unknown age, for which p-values do not hold where the healthy spread follows age."""
    return [scan.scan_id for scan in new.maps if scan.age is None] if healthy.ageing is not None else []


def unlike_training(new: NewScans, stage: Path, job: ScoringJob) -> dict[str, str]:
    """In what each usable scan differs from the training scans, by ``scan_id``; empty where it does not."""
    familiar = Familiar.load(calibration_folder(stage) / INPUTS)
    rows = new.prepared.table[new.prepared.table["scan_id"].isin(new.table["scan_id"])]
    return familiar.told(rows, new.prepared.quality, job.study.preprocessor, job.study.workers)


def score_scans(job: ScoringJob, site: str) -> Scored:
    """Score the job's scans and write ``scores.csv``, ``quality.csv`` and maps; the exit code is 3 when a scan was set
    aside."""
    hush()
    stage = job.trained.folder.path
    load_calibration(job.trained, site)  # a mistake comes before any work
    refuse_other_models(job.out, job.trained.digest()[:DIGITS])
    new, out = score_new(job), job.out
    learned = learned_in(new.prepared.quality, job.trained, site)
    scores = judge(new, job.trained, site, job.study.workers, learned)
    scores = scores.assign(
        **{UNLIKE: scores["scan_id"].map(unlike_training(new, stage, job)), IN_SCOPE: new.in_scope()}
    )
    own = score_names(new.table)
    verdicts = new.prepared.quality[["scan_id", "verdict", "reasons"]]
    wanted = ["scan_id", IN_SCOPE, *own, *(c for c in JUDGED if c in scores), UNLIKE]
    table = verdicts.merge(scores[wanted], on="scan_id", how="left").assign(
        model=job.trained.digest()[:DIGITS], source=verdicts["scan_id"].map(sources_of(new.images))
    )
    table[UNLIKE], table[LEARNED_IN] = table[UNLIKE].fillna(""), table["scan_id"].map(learned).fillna("")
    mark_output(out)
    known = load_calibration(job.trained, site)
    ageless = without_age(new, known[0]) if known else []
    outside = {*new.table.loc[~new.in_scope(), "scan_id"], *learned, *ageless}
    for scan in track(new.maps, len(new.maps), "maps on the scans' own grids"):
        beside = (known[0], known[1].without_clusters()) if known and scan.scan_id in outside else known
        write_maps(scan, new, job, beside)
    for scan_id in {*table["scan_id"]} - {scan.scan_id for scan in new.maps}:
        clear(out / scan_id)
    with written_whole(out / "scores.csv") as path:
        with_earlier(table, out / "scores.csv").to_csv(path, index=False)
    for row in table.to_dict("records"):
        say(f"  {row['scan_id']}: {in_words(row)}")
    numbers = new.prepared.quality.drop(columns=[c for c in DESCRIPTION if c != "scan_id"])
    with written_whole(out / "quality.csv") as path:
        with_earlier(numbers, out / "quality.csv").to_csv(path, index=False)
    tell_read_as(new.prepared)
    for same in copies(new.prepared.quality):
        say(f"  the same voxels: {same}")
    name = f"{job.trained.name}, {job.trained.stage}"
    say(f"scored with {name} of {job.trained.source}; scores{' and maps' * bool(new.maps)} are in {out}")
    if job.dicom and not new.maps:
        say("no DICOM results: this detector gives scores alone, and no maps")
    if known and (level := known[1].voxel_thresholds.get("standardised")) and new.maps:
        say(
            f"standardised.nii.gz is in healthy spreads: in the median healthy scan, {known[1].voxel_ml:g} ml lie "
            f"beyond {level:.2f}"
        )
    if ageless:
        say(
            f"the healthy spread follows age, and {len(ageless)} of these scans have none (the first is {ageless[0]}), "
            "so they get no p-value: name them in manifest=... with a column age"
        )
    if (table[UNLIKE] != "").any():
        say(
            "scores of scans unlike the training scans say more of the scanner than of the head: set a threshold with "
            "'python -m anomaly3d.calibrate' from healthy scans of their own site, or train on such scans"
        )
    if job.trained.lineage["synthetic"]:
        say(OF_PHANTOMS)
    if new.table.empty:
        say("no scan could be scored; the reasons are above")
    elif "p_value" not in table:
        say(f"no threshold is known: {job.trained.evaluation} makes one where the cohort has a calibration split")
    return Scored(new, known, 3 if (table["verdict"] != "accepted").any() else 0)


def sources_of(images: pd.Series) -> dict[str, str]:
    """A digest of each scan's path by ``scan_id``, which tells scans of one name apart and names no folder."""
    return {str(scan_id): digest(str(image)) for scan_id, image in images.items()}


def refuse_other_models(out: Path, model: str) -> None:
    """Refuse to put results beside those of another model, with which they cannot be ranked.

    Raises:
        UserError: names the table.
    """
    stored = out / "scores.csv"
    if stored.exists() and set(read_text(stored).get("model", pd.Series(model))) - {model}:
        raise UserError(
            f"{stored} holds scores of another detector, or of an earlier training of this one: choose another folder "
            "with out=..., or remove that one"
        )


def check_names(sources: Mapping[str, str], out: Path) -> None:
    """Refuse to overwrite results of another scan of the same name.

    Args:
        sources: digest of the path by ``scan_id``.

    Raises:
        UserError: names it.
    """
    stored = out / "scores.csv"
    if not stored.exists():
        return
    earlier = read_text(stored).set_index("scan_id").get("source", pd.Series(dtype=str))
    for scan_id, source in sources.items():
        if earlier.get(scan_id, source) != source:
            raise UserError(
                f"{stored} already holds a scan called {scan_id}, from another file: choose another folder with "
                "out=..., or name the folder of both with root=..."
            )


def with_earlier(table: pd.DataFrame, stored: Path) -> pd.DataFrame:
    """``table`` after the rows of ``stored`` whose scans it does not hold: those of earlier calls."""
    if not stored.exists():
        return table
    earlier = read_text(stored)
    return pd.concat([earlier[~earlier["scan_id"].isin(table["scan_id"])], table])


def in_words(row: dict) -> str:
    """What is known of a scan, for the terminal."""
    if row[IN_SCOPE] not in (True, False):
        return f"{row['verdict']}: {row['reasons']}"
    text = f"anomaly score {row['total']:.4f}"
    if "p_value" in row and row["score_name"] != "total":
        text += f", {row['score_name']} {row['score']:.4f}"
    if not row[IN_SCOPE]:
        return f"rejected: {row['reasons']}; {text}, outside of what the detector was made for"
    if row[LEARNED_IN]:
        text += f", no p-value: the run learned from these very voxels, in its {row[LEARNED_IN]} split"
    elif pd.notna(row.get("p_value")):
        text += f", p = {row['p_value']:.3f} among healthy scans" + (", flagged" if row["flagged"] is True else "")
    if row["reasons"]:
        text += f"; quality control {row['reasons']}"
    if row[UNLIKE]:
        text += f"; unlike the training scans: {row[UNLIKE]}"
    return text


def tell_set_aside(prepared: PreparedCohort) -> int:
    """Say which scans were not used and why; returns the exit code."""
    unusable = prepared.quality[prepared.quality["verdict"] != "accepted"]
    for row in unusable.to_dict("records"):
        say(f"  {row['scan_id']}: {row['verdict']}: {row['reasons']}")
    return 0 if unusable.empty else 3


def clear(folder: Path) -> None:
    """Remove what another call left of a scan, perhaps of another model."""
    for earlier in (*folder.glob("*.nii.gz"), *folder.glob("*.dcm"), folder / "clusters.csv", folder / PICTURES):
        earlier.unlink(missing_ok=True)


def write_maps(scan: ScanMaps, new: NewScans, job: ScoringJob, known: tuple[Healthy, Calibration] | None) -> None:
    """What ``own_grid_maps`` gives, as files under ``out/ID``; where there is a calibration also standardised maps, and
    their clusters as ``clusters.nii.gz``, ``anomaly_mask.nii.gz`` and ``clusters.csv``."""
    raw = scan.read()
    healthy, calibration = known or (None, None)
    found = Found(
        voxels(scan.image),
        raw.brain.astype(np.uint8),
        voxels(scan.reconstruction) if scan.reconstruction else None,
        {name: raw.values[name] for name in scan.own} | (standardised_maps(raw, healthy) if healthy else {}),
        nib.nifti1.Nifti1Image.from_filename(scan.image).affine,
        read_transform(new.prepared.folder, scan.scan_id),
    )
    original = read_image(Path(new.images[scan.scan_id]))
    maps = own_grid_maps(original, found, job.study.preprocessor)
    folder, names = job.out / scan.scan_id, []
    clear(folder)
    if calibration and (clusters := own_grid_clusters(original, found, maps, calibration, job.smallest_cluster_ml)):
        maps |= {"clusters": clusters.labels, "anomaly_mask": clusters.mask}
        names = clusters.table["name"].tolist()
        with written_whole(folder / "clusters.csv") as path:
            clusters.table.to_csv(path, index=False)
    for name, made in maps.items():
        with written_whole(folder / f"{name}.nii.gz") as path:
            nib.save(made, path)
    if job.dicom:
        source, standardised = Path(new.images[scan.scan_id]), maps.get(standardised_name(RESIDUAL))
        write_results(folder, source, standardised, maps.get("clusters"), names)
