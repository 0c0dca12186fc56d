"""Phantoms beside real heads: ``phantoms.png`` (24 phantoms), a figure with the real heads under ``runs``, numbers.

``python -m experiments.phantom_difficulty.look --scans ../shared/scans`` writes ``realism.json``.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import ndimage
from scipy.stats import wasserstein_distance

from anomaly3d.cohorts.phantom.cohort import plan
from anomaly3d.cohorts.phantom.generate import generate
from anomaly3d.preprocessing.brain_mask import erode
from anomaly3d.preprocessing.crop import working_grid
from anomaly3d.preprocessing.ncct import NCCT
from anomaly3d.scans.readers import HU_MIN, read_ct
from anomaly3d.scans.volume import Volume, resample
from experiments.preprocessing.measure import HEADS, as_read, ncct_of_conf

HERE = Path(__file__).parent
WORK = Path("runs/experiments/phantom_difficulty")
SEED = 777
VENTRICLES = 22.0  # mm: fluid deeper than this is ventricle or basal cistern


def slice_of(volume: Volume, at: int) -> np.ndarray:
    """An axial slice as a picture, front at the top."""
    return np.flipud(volume.data[:, :, at].T)


def numbers(scan: Volume, ncct: NCCT) -> dict[str, object]:
    """What can be compared between a phantom and a person: brain HU, fluid, noise, how slices blur."""
    found = ncct.register(scan, None)
    affine, shape = working_grid(ncct.working_spacing)
    hu = resample(scan, affine, shape, found.mni_to_scan, HU_MIN)
    mask = ncct.tissue(scan, hu, None, found.mni_to_scan).mask
    deep = erode(mask, VENTRICLES, ncct.working_spacing)
    smooth = ndimage.gaussian_filter(hu, 1.0)
    ml = ncct.working_spacing**3 / 1000 * abs(float(np.linalg.det(found.mni_to_scan[:3, :3])))
    to_mni = np.linalg.inv(found.mni_to_scan)
    inside = (
        resample(
            Volume(erode(mask, 8.0, ncct.working_spacing).astype(np.float32), affine),
            scan.affine,
            scan.data.shape,
            to_mni,
        )
        > 0.5
    )
    tissue = inside & (np.abs(scan.data - 32) < 25)
    residual = np.where(tissue, scan.data - ndimage.gaussian_filter(scan.data, (2.0, 2.0, 0)), 0)

    def correlation(axis: int) -> float:
        a, b = (np.take(residual, range(s, residual.shape[axis] - 1 + s), axis) for s in (0, 1))
        both = np.take(tissue, range(residual.shape[axis] - 1), axis) & np.take(
            tissue, range(1, residual.shape[axis]), axis
        )
        return float(np.corrcoef(a[both], b[both])[0, 1])

    return {
        "brain_hu": hu[mask][::20],
        "deep_fluid_ml": float((deep & (smooth < 18)).sum() * ml),
        "noise_hu": float(residual[tissue].std()),
        "noise_correlation_in_plane": correlation(0),
        "noise_correlation_of_slices": correlation(2),
        "slice_mm": float(scan.spacing[2]),
    }


def main() -> None:
    """Draw and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=Path, default=Path("../shared/scans"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    ncct = ncct_of_conf()
    recipes = [r for _, r in plan({"test_normal": 12, "test_lesion": 12}, SEED)]
    pictures: list[tuple[str, np.ndarray]] = []
    measured = []
    for recipe in recipes:
        phantom = generate(recipe.seed, recipe.lesions)
        scan = as_read(phantom.hu, phantom.affine)
        lesion = as_read(phantom.lesion, phantom.affine).data
        at = int(lesion.sum((0, 1)).argmax()) if lesion.any() else int(scan.data.shape[2] * 0.55)
        title = f"{phantom.subject.age} y, {'healthy' if not recipe.lesions else ' + '.join(recipe.lesions)}"
        pictures.append((title, slice_of(scan, at)))
        if not recipe.lesions:
            measured.append(numbers(scan, ncct))
    draw(pictures, HERE / "phantoms.png")
    if not arguments.scans.is_dir():
        return
    pooled = np.concatenate([np.asarray(m["brain_hu"]) for m in measured])

    def spread(values: Callable[[dict[str, object]], float]) -> list[float]:
        return [round(float(x), 2) for x in np.percentile([values(m) for m in measured], [0, 50, 100])]

    keys = [k for k in measured[0] if k != "brain_hu"]
    table: dict[str, object] = {
        "phantoms_min_median_max": {k: spread(lambda m, k=k: float(m[k])) for k in keys}  # type: ignore[misc, arg-type]
        | {"brain_hu_distance": spread(lambda m: wasserstein_distance(np.asarray(m["brain_hu"]), pooled))}
    }
    for name in HEADS:
        scan = read_ct(arguments.scans / f"{name}.nii.gz")
        found = numbers(scan, ncct)
        table[name] = {k: round(float(found[k]), 2) for k in keys} | {  # type: ignore[arg-type]
            "brain_hu_distance": round(float(wasserstein_distance(np.asarray(found["brain_hu"]), pooled)), 2)
        }
        low = int(scan.data.shape[2] * 0.6)
        pictures.insert(0, (name, slice_of(scan, low)))
    draw(pictures, WORK / "with_real_heads.png")
    (HERE / "realism.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


def draw(pictures: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Six in a row in the brain window (0 to 80 HU)."""
    rows = -(-len(pictures) // 6)
    figure, axes = plt.subplots(rows, 6, figsize=(12, 2.2 * rows), layout="constrained")
    for place in axes.ravel():
        place.axis("off")
    for place, (title, picture) in zip(axes.ravel(), pictures, strict=False):
        place.imshow(picture, cmap="gray", vmin=0, vmax=80)
        place.set_title(title, fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
