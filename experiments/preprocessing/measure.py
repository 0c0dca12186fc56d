"""How good registration and brain mask are: on phantoms with known transforms, and on the real heads if they are there.

``python -m experiments.preprocessing.measure --phantoms 100 --scans ../shared/scans``
Each scan's figures are kept under ``runs/experiments/preprocessing``, so a second call does only what is missing.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml

from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.generate import best_affine, generate
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.files import written_whole
from anomaly3d.parallel import run_parallel
from anomaly3d.preprocessing.brain_mask import FORAMEN_MAGNUM, intracranial_mask
from anomaly3d.preprocessing.pipeline import Settings, prepare_volume, working_grid
from anomaly3d.preprocessing.registration import register
from anomaly3d.preprocessing.template import build_template, load_template
from anomaly3d.preprocessing.volume import HU_MIN, Volume, read_scan, resample
from experiments.preprocessing.blast_ct import register_blast_ct

WORK = Path("runs/experiments/preprocessing")
HERE = Path(__file__).parent
SEED = 4242  # of these phantoms; no training cohort uses it
HEADS = ("ct_head", "ge_tilt18p5_deskewed_4mm")
FAILED = 15.0  # mm mean error: not a registration


def landmark_error(found: np.ndarray, true: np.ndarray, inner_table: Volume) -> float:
    """Mean distance in mm between two affines over the template's intracranial space."""
    voxels = np.argwhere(inner_table.data < 0)[::200]
    points = np.c_[voxels @ inner_table.affine[:3, :3].T + inner_table.affine[:3, 3], np.ones(len(voxels))]
    return float(np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean())


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def measure_phantom(index: int, settings: Settings, template_path: Path) -> None:
    """Registration by both recipes, mask against the true intracranial space; written to a JSON file."""
    done = WORK / f"phantom-{index:04d}.json"
    if done.exists():
        return
    torch.set_num_threads(1)
    template, inner_table = load_template(template_path)
    kind = (None, *TYPES)[index % 4]
    phantom = generate((SEED, index), kind)
    true = best_affine(phantom.subject, phantom.scan)
    scan = Volume(phantom.hu.astype(np.float32), phantom.affine)
    scan = Volume(scan.data[::-1, ::-1], scan.affine @ flip_xy(scan.data.shape))  # as read_scan gives it
    started = time.process_time()
    ours = register(
        scan,
        template,
        inner_table,
        settings.registration_spacing,
        settings.registration_share,
        settings.registration_enough,
    )
    ours_s = time.process_time() - started
    started = time.process_time()
    try:
        blast_mm = landmark_error(register_blast_ct(scan, template), true, inner_table)
    except RuntimeError:
        blast_mm = float("inf")
    blast_s = time.process_time() - started
    started = time.process_time()
    prepare_volume(scan, settings, template_path)
    all_steps_s = time.process_time() - started

    affine, shape = working_grid(settings.working_spacing)
    height = (affine[2, 3] + affine[2, 2] * np.arange(shape[2]))[None, None]
    hu = resample(scan, affine, shape, ours.mni_to_scan, HU_MIN)
    mask = intracranial_mask(hu, resample(inner_table, affine, shape, fill=30.0), height, settings.working_spacing)

    def there(data: np.ndarray) -> np.ndarray:
        truth = Volume(data.astype(np.float32), phantom.affine)
        return (resample(truth, affine, shape, ours.mni_to_scan) > 0.5) & (height > FORAMEN_MAGNUM)

    blood = there(phantom.lesion)
    figures = {
        "lesion": kind,
        "score": ours.score,
        "ours_mm": landmark_error(ours.mni_to_scan, true, inner_table),
        "blast_ct_mm": blast_mm,
        "ours_s": ours_s,
        "blast_ct_s": blast_s,
        "all_steps_s": all_steps_s,
        "mask_dice": dice(mask, there(phantom.intracranial)),
        "blood_inside": float(mask[blood].mean()) if blood.any() else None,
    }
    with written_whole(done) as path:
        path.write_text(json.dumps(figures, indent=1))


def flip_xy(shape: tuple[int, ...]) -> np.ndarray:
    """Voxel affine of reversing the first two axes."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    flip[:2, 3] = np.array(shape[:2]) - 1
    return flip


def measure_head(name: str, scans: Path, settings: Settings, template_path: Path) -> dict[str, Any]:
    """Mask against the published template's mask, registration against one to that template."""
    _, inner_table = load_template(template_path)
    scan = read_scan(scans / f"{name}.nii.gz")
    started = time.process_time()
    prepared = prepare_volume(scan, settings, template_path)
    seconds = time.process_time() - started
    reference = nib.Nifti1Image.from_filename(scans / "mni_reference" / "sc_brainmask_2mm_from_priors.nii.gz")
    priors = Volume(np.asarray(reference.dataobj, np.float32), np.asarray(reference.affine))
    expected = resample(priors, prepared.affine, (settings.resolution,) * 3) > 0.5
    published = nib.as_closest_canonical(nib.load(scans / "mni_reference" / "scct_hu_2mm.nii.gz"))
    other_hu = Volume(np.asarray(published.dataobj, np.float32), published.affine)  # type: ignore[attr-defined]
    near = Volume(resample(inner_table, other_hu.affine, other_hu.data.shape, fill=30.0), other_hu.affine)
    other = register(
        scan, other_hu, near, settings.registration_spacing, settings.registration_share, settings.registration_enough
    )
    return {
        "mask_dice": dice(prepared.brain_mask > 0, expected),
        "disagreement_mm": landmark_error(prepared.mni_to_scan, other.mni_to_scan, inner_table),
        "score": prepared.quality.registration,
        "all_steps_s": seconds,
    }


def summary(values: list[float]) -> dict[str, float]:
    """Median and the 5th and 95th percentile."""
    return {k: float(np.percentile(values, q)) for k, q in (("p5", 5), ("median", 50), ("p95", 95))}


def main() -> None:
    """Measure and write ``table.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--scans", type=Path, default=Path("../shared/scans"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    settings = Settings.from_config(yaml.safe_load((Path(CONF) / "preprocessing" / "ncct.yaml").read_text()))
    template_path = build_template(Path("data"))
    jobs = [(i, settings, template_path) for i in range(arguments.phantoms)]
    for _ in run_parallel(measure_phantom, jobs, arguments.workers, "phantoms"):
        pass
    rows = [json.loads((WORK / f"phantom-{i:04d}.json").read_text()) for i in range(arguments.phantoms)]
    table: dict[str, Any] = {"n": len(rows)}
    for key in ("ours_mm", "blast_ct_mm", "ours_s", "blast_ct_s", "all_steps_s", "mask_dice", "score"):
        table[key] = summary([r[key] for r in rows])
    for recipe in ("ours", "blast_ct"):
        table[f"{recipe}_failed"] = sum(r[f"{recipe}_mm"] > FAILED for r in rows)
    table["mask_dice_share_above_0.90"] = float(np.mean([r["mask_dice"] >= 0.9 for r in rows]))
    extra = [r["blood_inside"] for r in rows if r["lesion"] in ("epidural", "subdural")]
    table["extra_axial_blood_inside"] = summary(extra)
    table["extra_axial_share_above_0.90"] = float(np.mean([b >= 0.9 for b in extra]))
    if arguments.scans.is_dir():
        table["real"] = {name: measure_head(name, arguments.scans, settings, template_path) for name in HEADS}
    table["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    (HERE / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
