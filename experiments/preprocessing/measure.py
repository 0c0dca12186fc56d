"""How good registration, brain mask and quality control are: on phantoms with known truth, and on the real heads.

``python -m experiments.preprocessing.measure --scans ../shared/scans`` writes ``table.json``. Each scan's figures are
kept under ``runs/experiments/preprocessing``, so a second call does only what is missing.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from scipy.spatial.transform import Rotation

from anomaly3d.atlas.template import build_template, load_template
from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.faults import FAULTS, transform_fault
from anomaly3d.cohorts.phantom.generate import PhantomScan, best_affine, generate
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.cohorts.phantom.scanner import Scan
from anomaly3d.cohorts.phantom.versions import LATEST
from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.brain_mask import FORAMEN_MAGNUM
from anomaly3d.preprocessing.crop import working_grid
from anomaly3d.preprocessing.ncct import NCCT, working_template
from anomaly3d.preprocessing.outcome import Sources
from anomaly3d.preprocessing.registration import register
from anomaly3d.preprocessing.scan import prepare_scan
from anomaly3d.scans.readers import HU_MIN, read_ct
from anomaly3d.scans.volume import Volume, resample
from anomaly3d.statistics.auc import wilson
from anomaly3d.system.files import written_whole
from anomaly3d.system.instantiate import build
from anomaly3d.system.workers import run_parallel
from experiments.preprocessing.blast_ct import register_blast_ct

WORK = Path("runs/experiments/preprocessing") / f"phantom-v{LATEST}"
DATA = Path("data")
HERE = Path(__file__).parent
SEED = 4242  # of these phantoms; no training cohort uses it
HEADS = ("ct_head", "ge_tilt18p5_deskewed_4mm")
FAILED = 15.0  # mm mean error: not a registration


def ncct_of_conf() -> NCCT:
    """``conf/preprocessing/ncct.yaml``, with its template under ``data``."""
    ncct = build(yaml.safe_load((Path(CONF) / "preprocessing" / "ncct.yaml").read_text()), "preprocessing config")
    ncct.setup(DATA)
    return ncct


def landmark_error(found: np.ndarray, true: np.ndarray, inner_table: Volume) -> float:
    """Mean distance in mm between two affines over the template's intracranial space."""
    voxels = np.argwhere(inner_table.data < 0)[::200]
    points = np.c_[voxels @ inner_table.affine[:3, :3].T + inner_table.affine[:3, 3], np.ones(len(voxels))]
    return float(np.linalg.norm((points @ (found - true).T)[:, :3], axis=1).mean())


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|)."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def as_read(hu: np.ndarray, affine: np.ndarray) -> Volume:
    """A phantom as ``read_ct`` gives it."""
    image = nib.as_closest_canonical(nib.nifti1.Nifti1Image(hu, affine))
    return Volume(np.asarray(image.dataobj, np.float32), image.affine)


def turned(phantom: PhantomScan, degrees: float, axis: int) -> np.ndarray:
    """World to world: the head turned about an axis through its middle and 25 mm off centre."""
    middle = (phantom.scan.pose @ [0, -18, 8, 1])[:3]
    world = np.eye(4)
    world[:3, :3] = Rotation.from_rotvec(degrees * np.eye(3)[axis], degrees=True).as_matrix()
    world[:3, 3] = middle - world[:3, :3] @ middle + 25
    return world


def with_neck(scan: Scan) -> Scan:
    """80 mm more below."""
    more = int(80 / scan.thickness)
    affine = scan.affine.copy()
    affine[:3, 3] -= more * affine[:3, 2]
    return replace(scan, shape=(*scan.shape[:2], scan.shape[2] + more), affine=affine)


def with_tilt(scan: Scan) -> Scan:
    """A gantry tilted by 20 degrees, as an affine with a shear."""
    affine = scan.affine.copy()
    shear = np.array([0.0, np.tan(np.deg2rad(20)) * scan.thickness, 0.0])
    affine[:3, 3] -= shear * scan.shape[2] / 2
    affine[:3, 2] += shear
    return replace(scan, affine=affine)


# name -> arguments of generate()
HARD: dict[str, dict[str, Any]] = {
    "neck in view": {"change_scan": with_neck},
    "gantry tilt 20 degrees": {"change_scan": with_tilt},
    "slices of 1.1 mm": {"slices": 150},
    "slices of 7 mm": {"slices": 23},
    "craniectomy": {"postoperative": "craniectomy"},
}


def keep(name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Write the figures of one scan to a file of its own unless it is there."""
    done = WORK / f"{name}.json"
    if not done.exists():
        torch.set_num_threads(1)
        figures = make()
        with written_whole(done) as path:
            path.write_text(json.dumps(figures, indent=1))


def kind_of(index: int) -> str | None:
    """What a phantom shows, each kind in turn."""
    return (None, *TYPES)[index % (1 + len(TYPES))]


def extra_axial(kind: str | None) -> bool:
    """Whether it lies between skull and brain."""
    return kind is not None and kind.startswith(("epidural", "subdural"))


def measure_phantom(index: int, version: int, ncct: NCCT, template_path: Path) -> None:
    """Both recipes against the true transform; mask against the true intracranial space; seconds of all steps."""
    template, inner_table = load_template(template_path)

    def make() -> dict[str, Any]:
        kind = kind_of(index)
        phantom = generate((SEED, index), [kind] if kind else [], version=version)
        true = best_affine(phantom.subject, phantom.scan)
        scan = as_read(phantom.hu, phantom.affine)
        started = time.process_time()
        ours = ncct.register(scan, None)
        ours_s = time.process_time() - started
        started = time.process_time()
        try:
            blast_mm = landmark_error(register_blast_ct(scan, template), true, inner_table)
        except RuntimeError:
            blast_mm = 999.0
        blast_s = time.process_time() - started
        affine, shape = working_grid(ncct.working_spacing)
        _, height, _ = working_template(template_path, ncct.working_spacing)
        hu = resample(scan, affine, shape, ours.mni_to_scan, HU_MIN)
        mask = ncct.tissue(scan, hu, None, ours.mni_to_scan).mask

        def there(data: np.ndarray) -> np.ndarray:
            truth = Volume(data.astype(np.float32), phantom.affine)
            return (resample(truth, affine, shape, ours.mni_to_scan) > 0.5) & (height > FORAMEN_MAGNUM)

        blood = there(phantom.lesion)
        plain = generate((SEED, index), [], warped=False, version=version)
        found = ncct.register(as_read(plain.hu, plain.affine), None)
        return {
            "lesion": kind,
            "score": ours.score,
            "ours_mm": landmark_error(ours.mni_to_scan, true, inner_table),
            "blast_ct_mm": blast_mm,
            "ours_s": ours_s,
            "blast_ct_s": blast_s,
            "unwarped_mm": landmark_error(found.mni_to_scan, plain.scan.pose, inner_table),
            "mask_dice": dice(mask, there(phantom.intracranial)),
            "blood_inside": float(mask[blood].mean()) if blood.any() else None,
        }

    keep(f"{'' if version == LATEST else f'version{version}-'}phantom-{index:04d}", make)


def measure_hard(name: str, index: int, ncct: NCCT, template_path: Path) -> None:
    """Registration and mask where it is hard."""
    _, inner_table = load_template(template_path)

    def make() -> dict[str, Any]:
        world, truncate = np.eye(4), False
        if name.startswith("turned"):
            phantom = generate((SEED, 5000 + index), [])
            world = turned(phantom, float(30 * (-1) ** index), index % 3)
        elif name == "vertex cut by 20 mm":
            phantom, truncate = generate((SEED, 5000 + index), []), True
        else:
            phantom = generate((SEED, 5000 + index), [], **HARD[name])
        hu, inside = phantom.hu, phantom.intracranial
        if truncate:
            lost = int(np.ceil(35 / phantom.scan.thickness))  # scans begin up to 15 mm above the vertex
            hu, inside = hu[..., :-lost], inside[..., :-lost]
        scan = as_read(hu, world @ phantom.affine)
        prepared = ncct.prepare(scan, Companions())
        true = world @ best_affine(phantom.subject, phantom.scan)
        truth = Volume(inside.astype(np.float32), world @ phantom.affine)
        expected = resample(truth, prepared.affine, prepared.brain_mask.shape, prepared.mni_to_scan) > 0.5
        height = prepared.affine[2, 3] + prepared.affine[2, 2] * np.arange(ncct.resolution)
        return {
            "mm": landmark_error(prepared.mni_to_scan, true, inner_table),
            "score": prepared.quality["registration"],
            "mask_dice": dice(prepared.brain_mask > 0, expected & (height > FORAMEN_MAGNUM)),
            "rejected": bool(ncct.judge(prepared.quality)),
        }

    keep(f"hard-{name.replace(' ', '-')}-{index:04d}", make)


def measure_quality(kind: str, index: int, ncct: NCCT) -> None:
    """What quality control says of a healthy phantom, or of one with a fault."""

    def make() -> dict[str, Any]:
        code = ["healthy", *FAULTS, "wrong_registration"].index(kind)
        rng = np.random.default_rng((SEED, 9, code, index))
        phantom = generate((SEED, 10000 + index), [])
        hu, affine = FAULTS[kind](phantom.hu, phantom.affine, rng) if kind in FAULTS else (phantom.hu, phantom.affine)
        fault = transform_fault(rng) if kind == "wrong_registration" else None
        prepared = ncct.prepare(as_read(hu, affine), Companions(transform_fault=fault))
        return {"reasons": ncct.judge(prepared.quality), **prepared.quality}

    keep(f"quality-{kind}-{index:04d}", make)


def measure_head(name: str, scans: Path, ncct: NCCT, template_path: Path) -> dict[str, Any]:
    """Mask against the published template's mask, registration against one to that template."""
    template, inner_table = load_template(template_path)
    started = time.process_time()
    outcome = prepare_scan(Sources(name, str(scans / f"{name}.nii.gz")), WORK / f"real-{time.monotonic_ns()}", ncct)
    seconds = time.process_time() - started
    scan = read_ct(scans / f"{name}.nii.gz")
    prepared = ncct.prepare(scan, Companions())
    reference = nib.nifti1.Nifti1Image.from_filename(scans / "mni_reference" / "sc_brainmask_2mm_from_priors.nii.gz")
    priors = Volume(np.asarray(reference.dataobj, np.float32), np.asarray(reference.affine))
    expected = resample(priors, prepared.affine, (ncct.resolution,) * 3) > 0.5
    published = nib.as_closest_canonical(nib.load(scans / "mni_reference" / "scct_hu_2mm.nii.gz"))
    other_hu = Volume(np.asarray(published.dataobj, np.float32), published.affine)  # type: ignore[attr-defined]
    near = Volume(resample(inner_table, other_hu.affine, other_hu.data.shape, fill=30.0), other_hu.affine)
    other = register(scan, other_hu, near, ncct.registration_spacing, ncct.registration_enough)
    rng = np.random.default_rng(0)
    again = []
    for _ in range(20):
        axis = rng.standard_normal(3)
        world = np.eye(4)
        world[:3, :3] = Rotation.from_rotvec(30 * axis / np.linalg.norm(axis), degrees=True).as_matrix()
        world[:3, 3] = rng.uniform(-40, 40, 3)
        found = ncct.register(Volume(scan.data, world @ scan.affine), None)
        again.append(landmark_error(np.linalg.inv(world) @ found.mni_to_scan, prepared.mni_to_scan, inner_table))
    started = time.process_time()
    try:
        blast = landmark_error(register_blast_ct(scan, template), prepared.mni_to_scan, inner_table)
    except RuntimeError:
        blast = 999.0
    return {
        "verdict": "rejected" if ncct.judge(outcome.quality) else "accepted",
        "mask_dice": dice(prepared.brain_mask > 0, expected),
        "disagreement_with_published_template_mm": landmark_error(prepared.mni_to_scan, other.mni_to_scan, inner_table),
        "score": prepared.quality["registration"],
        "all_steps_s": seconds,
        "turned_by_30_degrees_found": f"{sum(e < 2 for e in again)} of {len(again)}",
        "blast_ct_to_ours_mm": blast,
        "blast_ct_s": time.process_time() - started,
    }


def measure_throughput(matrix: int, slices: int, ncct: NCCT) -> dict[str, float]:
    """Core-seconds of all seven steps, reading and writing included, and the process's peak memory."""
    seconds = []
    for index in range(5):
        path = WORK / "throughput" / f"{matrix}-{index}.nii.gz"
        if not path.exists():
            phantom = generate((SEED, 20000 + index), [], matrix=matrix, slices=slices)
            with written_whole(path) as beside:
                nib.save(nib.nifti1.Nifti1Image(phantom.hu, phantom.affine), beside)
        out = WORK / "throughput" / f"out-{time.monotonic_ns()}"
        started = time.process_time()
        prepare_scan(Sources("scan", str(path)), out, ncct)
        seconds.append(time.process_time() - started)
    return {"median_s": float(np.median(seconds)), "max_s": max(seconds)}


def peak_memory(ncct: NCCT) -> float:
    """MB of a process that prepares one scan of 512 x 512 x 30."""
    path = WORK / "throughput" / "512-0.nii.gz"
    prepare_scan(Sources("scan", str(path)), WORK / "throughput" / "memory", ncct)
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent before this process began
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def summary(values: list[float]) -> dict[str, float]:
    """Median and the 5th and 95th percentile."""
    return {k: round(float(np.percentile(values, q)), 4) for k, q in (("p5", 5), ("median", 50), ("p95", 95))}


def read(pattern: str) -> list[dict[str, Any]]:
    """The kept figures of all scans of a kind."""
    return [json.loads(path.read_text()) for path in sorted(WORK.glob(f"{pattern}-[0-9]*.json"))]


def share(count: int, total: int) -> dict[str, Any]:
    """A proportion with Wilson's interval."""
    return {"n": total, "share": round(count / total, 4), "ci95": [round(x, 4) for x in wilson(count / total, total)]}


def main() -> None:
    """Measure and write ``table.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--hard", type=int, default=20)
    parser.add_argument("--healthy", type=int, default=300)
    parser.add_argument("--faulty", type=int, default=60)
    parser.add_argument("--scans", type=Path, default=Path("../shared/scans"))
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    ncct, template_path = ncct_of_conf(), build_template(DATA)
    hard = ["turned by 30 degrees, 43 mm off centre", "vertex cut by 20 mm", *HARD]
    kinds = {"healthy": arguments.healthy} | dict.fromkeys([*FAULTS, "wrong_registration"], arguments.faulty)
    for what, function, jobs in (
        ("phantoms", measure_phantom, [(i, LATEST, ncct, template_path) for i in range(arguments.phantoms)]),
        (
            "extra-axial blood of version 3",
            measure_phantom,
            [(i, 3, ncct, template_path) for i in range(arguments.phantoms) if extra_axial(kind_of(i))],
        ),
        ("hard cases", measure_hard, [(name, i, ncct, template_path) for name in hard for i in range(arguments.hard)]),
        ("quality control", measure_quality, [(kind, i, ncct) for kind, n in kinds.items() for i in range(n)]),
    ):
        for _ in run_parallel(function, jobs, arguments.workers, what):
            pass
    torch.set_num_threads(1)
    rows = read("phantom")
    table: dict[str, Any] = {"phantom_version": LATEST, "n": len(rows)}
    for key in ("ours_mm", "unwarped_mm", "blast_ct_mm", "ours_s", "blast_ct_s", "mask_dice", "score"):
        table[key] = summary([r[key] for r in rows])
    for recipe in ("ours", "blast_ct"):
        table[f"{recipe}_failed"] = share(sum(r[f"{recipe}_mm"] > FAILED for r in rows), len(rows))
    table["mask_dice_at_least_0.90"] = share(sum(r["mask_dice"] >= 0.9 for r in rows), len(rows))
    blood = [r["blood_inside"] for r in rows if extra_axial(r["lesion"])]
    table["extra_axial_blood_inside"] = summary(blood)
    table["extra_axial_blood_inside_at_least_0.90"] = share(sum(b >= 0.9 for b in blood), len(blood))
    table["extra_axial_blood_inside_version_3"] = summary([r["blood_inside"] for r in read("version3-phantom")])
    table["hard"] = {}
    for name in hard:
        found = read(f"hard-{name.replace(' ', '-')}")
        table["hard"][name] = {
            "n": len(found),
            "mm": summary([r["mm"] for r in found]),
            "mask_dice": summary([r["mask_dice"] for r in found]),
            "rejected": sum(r["rejected"] for r in found),
        }
    table["flagged"] = {}
    for kind in kinds:
        found = read(f"quality-{kind}")
        table["flagged"][kind] = share(sum(bool(r["reasons"]) for r in found), len(found))
    table["throughput"] = {f"{m}x{m}x{s}": measure_throughput(m, s, ncct) for m, s in ((256, 36), (512, 30))}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        table["worker_peak_memory_mb"] = round(fresh.submit(peak_memory, ncct).result())
    if arguments.scans.is_dir():
        table["real"] = {name: measure_head(name, arguments.scans, ncct, template_path) for name in HEADS}
    (HERE / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
