"""New scans through a trained detector: a score each, reconstruction and residual back on the scan's own grid."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from omegaconf import DictConfig

from anomaly3d.cohorts.folder import folder_manifest
from anomaly3d.cohorts.manifest import read_manifest
from anomaly3d.data import HeadCTDataModule
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.evaluation.run import finished_stages, load, score_test
from anomaly3d.files import written_whole
from anomaly3d.preparation import worker_count
from anomaly3d.preprocessing.cohort import PreparedCohort, prepare_cohort
from anomaly3d.preprocessing.pipeline import Settings
from anomaly3d.preprocessing.volume import Volume, read_image, resample
from anomaly3d.progress import say, track
from anomaly3d.quiet import hush

COLUMNS = ("scan_id", "verdict", "reasons", "total", "image", "feature", "latent")


def score_scans(config: DictConfig) -> int:
    """Score ``config.scans`` or ``config.root`` and return the command's exit code: 3 when a scan was set aside."""
    hush()
    run = Path(config.runs_dir) / config.run
    stage, folder = next(iter(finished_stages(run).items()))
    lineage = folder.read()
    assert lineage is not None
    settings = Settings.from_config(lineage["settings"]["preprocessing"])
    scans = [config.scans] if isinstance(config.scans, str) else [str(s) for s in config.scans]
    data_dir, out = Path(config.data_dir), Path(config.out)
    root = Path(config.root) if config.root else None
    manifest = folder_manifest(root, scans, "", {}, "scored", data_dir)
    prepared = prepare_cohort(manifest, settings, data_dir, worker_count(config))
    verdicts = pd.DataFrame(
        [{"scan_id": v.scan_id, "verdict": v.verdict, "reasons": v.reasons} for v in prepared.verdicts]
    )
    table = verdicts
    if prepared.with_verdict("accepted"):
        data = HeadCTDataModule(prepared.folder, config.batch, 1)
        scores = score_test(FAnoGAN.load(folder.model), data, out, config, reconstructions=True)
        table = verdicts.merge(scores[[c for c in COLUMNS if c in scores]], on="scan_id", how="left")
        images = read_manifest(manifest).set_index("scan_id")["image"]
        usable = prepared.with_verdict("accepted")
        for verdict in track(usable, len(usable), "maps on the scans' own grids"):
            write_maps(Path(images[verdict.scan_id]), verdict.scan_id, prepared, out, settings.window)
    with written_whole(out / "scores.csv") as path:
        table.to_csv(path, index=False)
    for row in table.to_dict("records"):
        used = row["verdict"] == "accepted"
        say(
            f"  {row['scan_id']}: "
            + (f"anomaly score {row['total']:.4f}" if used else f"{row['verdict']}: {row['reasons']}")
        )
    say(f"scored with {stage} of run {config.run}; scores and maps are in {out}")
    return 3 if (table["verdict"] != "accepted").any() else 0


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
    reconstruction = load(out / "reconstruction" / f"{scan_id}.nii.gz")
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
