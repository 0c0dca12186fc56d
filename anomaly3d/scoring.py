"""New scans through a trained detector: scores, p-values, maps on the scan's own grid; a site's own threshold."""

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from omegaconf import DictConfig

from anomaly3d.cohorts.folder import folder_manifest
from anomaly3d.cohorts.manifest import read_manifest
from anomaly3d.data import HeadCTDataModule
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.errors import UserError
from anomaly3d.evaluation.calibration import OWN, Calibration, calibrate, calibration_folder, check_rate
from anomaly3d.evaluation.conformal import discoveries
from anomaly3d.evaluation.inference import Inference, finished_stages
from anomaly3d.evaluation.rescoring import Healthy, Maps, load, maps_of, rescore
from anomaly3d.files import sha256, written_whole
from anomaly3d.lineage import PhaseFolder
from anomaly3d.preparation import worker_count
from anomaly3d.preprocessing.cohort import PreparedCohort, prepare_cohort
from anomaly3d.preprocessing.pipeline import Settings
from anomaly3d.preprocessing.volume import Volume, read_image, resample
from anomaly3d.progress import say, track
from anomaly3d.quiet import hush

COLUMNS = ("scan_id", "verdict", "reasons", "total", "image", "feature", "latent")
INFERENCE = "inference"  # under ``out``: distances of the last call's scans, reconstructions in MNI space
JUDGED = ("score_name", "score", "p_value", "flagged", "discovery", "site")
FALSE_DISCOVERIES = 0.1  # share of a batch's discoveries that may be healthy


@dataclass(frozen=True)
class NewScans:
    """Scans outside of the run's cohort that its detector has scored."""

    stage: str  # the phase, and its folder
    folder: Path
    images: pd.Series  # source of each scan by ``scan_id``
    prepared: PreparedCohort
    table: pd.DataFrame  # a row a usable scan
    maps: list[Maps]
    window: tuple[float, float]


def score_new(config: DictConfig) -> NewScans:
    """Prepare ``config.scans`` or ``config.root`` as the run's own data were, and score what can be used.

    Raises:
        UserError: no trained run, no scans.
    """
    run = Path(config.runs_dir) / config.run
    stage, folder = next(iter(finished_stages(run).items()))
    lineage = folder.read()
    assert lineage is not None
    settings = Settings.from_config(lineage["settings"]["preprocessing"])
    scans = [config.scans] if isinstance(config.scans, str) else [str(s) for s in config.scans]
    data_dir, out = Path(config.data_dir), Path(config.out) / INFERENCE
    manifest = folder_manifest(Path(config.root) if config.root else None, scans, "", {}, "scored", data_dir)
    prepared = prepare_cohort(manifest, settings, data_dir, worker_count(config))
    table, maps = pd.DataFrame({"scan_id": []}), []
    if prepared.with_verdict("accepted"):
        data = HeadCTDataModule(prepared.folder, config.batch, 1, memory_gb=config.memory_gb)
        table = Inference(data, config).run(FAnoGAN.load(folder.model), "test", out, reconstructions=True)
        maps = maps_of(data.split("test"), out)
    images = read_manifest(manifest).set_index("scan_id")["image"]
    return NewScans(stage, folder.path, images, prepared, table, maps, settings.window)


def load_calibration(stage: Path, site: str) -> tuple[Healthy, Calibration] | None:
    """What was measured on healthy scans, None where nothing was.

    Raises:
        UserError: other sites have been calibrated, but not this one.
    """
    folder = calibration_folder(stage)
    known = sorted(path.stem for path in folder.glob("*.json"))
    if site not in known and (known or site != OWN):
        raise UserError(
            f"site={site}: {folder} holds calibrations of {', '.join(known) or 'no site'}; make one from healthy scans "
            f"with 'python -m anomaly3d.calibrate site={site} root=...'"
        )
    if site not in known:
        return None
    return Healthy.load(folder / "healthy.npz"), Calibration.load(folder / f"{site}.json")


def judge(table: pd.DataFrame, maps: list[Maps], stage: Path, site: str, workers: int) -> pd.DataFrame:
    """``table`` with the columns ``JUDGED``, if a threshold is known.

    ``flagged`` holds for one scan; ``discovery`` for the batch: of all discoveries, at most ``FALSE_DISCOVERIES`` are
    expected to be healthy (Benjamini-Hochberg).
    """
    known = load_calibration(stage, site)
    if known is None or table.empty:
        return table
    healthy, calibration = known
    scores = rescore(table, maps, healthy, workers, "scores")[calibration.score]
    p = calibration.p_values(scores.to_numpy(float))
    return table.assign(
        score_name=calibration.score,
        score=scores,
        p_value=p,
        flagged=scores >= calibration.threshold,
        discovery=discoveries(p, FALSE_DISCOVERIES),
        site=site,
    )


def score_scans(config: DictConfig) -> int:
    """Score ``config.scans`` or ``config.root`` and return the command's exit code: 3 when a scan was set aside."""
    hush()
    run = Path(config.runs_dir) / config.run
    load_calibration(next(iter(finished_stages(run).values())).path, config.site)  # a mistake comes before any work
    new, out = score_new(config), Path(config.out)
    scores = judge(new.table, new.maps, new.folder, config.site, worker_count(config))
    verdicts = pd.DataFrame(
        [{"scan_id": v.scan_id, "verdict": v.verdict, "reasons": v.reasons} for v in new.prepared.verdicts]
    )
    wanted = [c for c in (*COLUMNS, *JUDGED) if c in scores]
    table = verdicts.merge(scores[wanted], on="scan_id", how="left").assign(
        model=sha256(PhaseFolder(new.folder).model)[:12]
    )
    usable = new.prepared.with_verdict("accepted")
    for verdict in track(usable, len(usable), "maps on the scans' own grids"):
        write_maps(Path(new.images[verdict.scan_id]), verdict.scan_id, new.prepared, out, new.window)
    with written_whole(out / "scores.csv") as path:
        with_earlier(table, out / "scores.csv").to_csv(path, index=False)
    for row in table.to_dict("records"):
        say(f"  {row['scan_id']}: {in_words(row)}")
    say(f"scored with {new.stage} of run {config.run}; scores and maps are in {out}")
    if "p_value" not in table:
        say(
            f"no threshold is known: 'python -m anomaly3d.evaluate run={config.run}' makes one where the cohort has a "
            "calibration split"
        )
    return 3 if (table["verdict"] != "accepted").any() else 0


def with_earlier(table: pd.DataFrame, stored: Path) -> pd.DataFrame:
    """``table`` after the rows of ``stored`` whose scans it does not hold: those of earlier calls."""
    if not stored.exists():
        return table
    earlier = pd.read_csv(stored, dtype={"scan_id": str, "site": str, "model": str})  # 007 and 12e4 are names
    return pd.concat([earlier[~earlier["scan_id"].isin(table["scan_id"])], table])


def in_words(row: dict) -> str:
    """What is known of a scan, for the terminal."""
    if row["verdict"] != "accepted":
        return f"{row['verdict']}: {row['reasons']}"
    text = f"anomaly score {row['total']:.4f}"
    if "p_value" in row:
        if row["score_name"] != "total":
            text += f", {row['score_name']} {row['score']:.4f}"
        text += f", p = {row['p_value']:.3f} among healthy scans" + (", flagged" if row["flagged"] else "")
    return text


def calibrate_site(config: DictConfig) -> int:
    """Set ``config.site``'s threshold from its own healthy scans and return the command's exit code.

    Raises:
        UserError: the run has not been evaluated, no scan is usable, or the site's name is that of the run's cohort.
    """
    hush()
    run = Path(config.runs_dir) / config.run
    if not config.site or config.site == OWN or "/" in config.site:
        raise UserError(f"site=NAME is missing: another name than {OWN!r}, which is the run's own calibration split")
    if config.false_positive_rate is not None:
        check_rate("false_positive_rate", config.false_positive_rate)
    own = load_calibration(next(iter(finished_stages(run).values())).path, OWN)
    if own is None:
        raise UserError(
            f"run {config.run} has not chosen a score: run 'python -m anomaly3d.evaluate run={config.run}' first; its "
            "cohort needs a calibration split"
        )
    healthy, before = own
    new = score_new(config)
    if new.table.empty:
        raise UserError(f"no scan can be used: see quality.csv in {new.prepared.folder}")
    workers = worker_count(config)
    table = rescore(new.table, new.maps, healthy, workers, "scores")
    rate = before.rate if config.false_positive_rate is None else config.false_positive_rate
    (made,) = calibrate(config.site, [before.score], table, new.maps, healthy, rate, before.voxel_rate, workers)
    path = calibration_folder(new.folder) / f"{config.site}.json"
    made.save(path)
    flagged = float(np.mean(table[before.score] >= before.threshold))
    say(
        f"{len(table)} healthy scans of {made.site}: the run's own threshold {before.threshold:.4g} flags {flagged:.0%}"
    )
    if np.isfinite(made.threshold):
        say(f"threshold of {made.score} for {rate:.0%}: {made.threshold:.4g}, in {path}; use it with site={made.site}")
    else:
        least = int(np.ceil(1 / rate)) - 1
        say(f"too few scans for a threshold at {rate:.0%}, which takes {least}; p-values work with site={made.site}")
    unusable = [v for v in new.prepared.verdicts if v.verdict != "accepted"]
    for verdict in unusable:
        say(f"  {verdict.scan_id}: {verdict.verdict}: {verdict.reasons}")
    return 3 if unusable else 0


def write_maps(scan: Path, scan_id: str, prepared: PreparedCohort, out: Path, window: tuple[float, float]) -> None:
    """Reconstruction (HU), signed residual x - G(E(x)) (HU) and brain mask on the scan's own grid under ``out/ID``.

    Outside the brain reconstruction and residual are the window's lower end and 0.
    """
    original = read_image(scan)
    shape = original.shape[:3]
    transform = json.loads((prepared.folder / "transform" / f"{scan_id}.json").read_text())
    to_mni = np.linalg.inv(np.array(transform["mni_to_scan"]))
    grid = nib.Nifti1Image.from_filename(prepared.folder / "image" / f"{scan_id}.nii.gz").affine
    half = (window[1] - window[0]) / 2
    image = load(prepared.folder / "image" / f"{scan_id}.nii.gz")
    reconstruction = load(out / INFERENCE / "reconstruction" / f"{scan_id}.nii.gz")
    brain = load(prepared.folder / "brain_mask" / f"{scan_id}.nii.gz")
    maps = {
        "input": ((image + 1) * half + window[0], window[0]),
        "reconstruction": ((reconstruction + 1) * half + window[0], window[0]),
        "residual": ((image - reconstruction) * half, 0.0),
        "brain_mask": (brain, 0.0),
    }
    for name, (volume, fill) in maps.items():
        back = resample(Volume(volume, grid), original.affine, shape, to_mni, fill)
        back = (back > 0.5).astype(np.uint8) if name == "brain_mask" else np.rint(back).astype(np.int16)
        header = original.header.copy()
        header.set_data_dtype(back.dtype)
        header.set_slope_inter(1, 0)
        with written_whole(out / scan_id / f"{name}.nii.gz") as path:
            nib.save(nib.Nifti1Image(back, original.affine, header), path)
