"""How good the preparation of MR is, and what is found on it: ``python -m experiments.beyond.mr t1w=runs/mr-t1w ...``

Phantoms are prepared as any scan is and compared with what only they know; then each trained detector of each
WEIGHTING=RUN that was typed is evaluated on its run's own cohort. Writes ``mr.json`` and the tables of ``README.md``;
what is there already is left. ``--head FILE`` also prepares a T1-weighted head of yours that lies in MNI space, and
compares with ``--brain FILE``, its brain.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.spatial.transform import Rotation

from anomaly3d.atlas.template import load_template
from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.cohort import plan
from anomaly3d.cohorts.phantom.faults import transform_fault
from anomaly3d.cohorts.phantom.files import FAULT
from anomaly3d.cohorts.phantom.generate import best_affine, generate
from anomaly3d.evaluation.metrics import auc_of, of_lesion, ranked
from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.mr import MR, WEIGHTINGS
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.volume import Volume, resample
from anomaly3d.scoring.writer import RESCORED
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say, track
from experiments.beyond.kept import HERE
from experiments.preprocessing.measure import DATA, as_read, dice, landmark_error
from experiments.scores.measure import fill, markdown

SEED, HEADS = 31, 24  # dev seeds
KINDS = ("infarct", "tumour", "white_matter")
DETECTORS = ("fanogan", "denoising", "pca")
POSES = (((0, 0, 0), (0, 0, 0), 1.0), ((25, -10, 15), (0, 0, 40), 1.0), ((-20, 10, -10), (0, 30, 0), 0.92))


def prepared_by(weighting: str) -> MR:
    """The preprocessor of the configuration."""
    made = instantiate(OmegaConf.load(Path(CONF) / "preprocessing" / f"{weighting}.yaml"), _convert_="all")
    made.setup(DATA)
    return made


def on_phantoms(weighting: str) -> dict[str, Any]:
    """Over ``HEADS`` phantoms: landmark error, Dice of the brain mask, score of right and of wrong poses, seconds."""
    mr, rows = prepared_by(weighting), []
    _, inner_table = load_template(mr._template_path)  # type: ignore[arg-type]
    counts = {"test_normal": HEADS // 4, "test_lesion": HEADS // 4, "b_test_normal": HEADS // 4}
    recipes = [r for _, r in plan({**counts, "b_test_lesion": HEADS // 4}, SEED, modality=weighting, matrix=192)]
    for recipe in track(recipes, len(recipes), f"{weighting} phantoms"):
        phantom = generate(recipe.seed, recipe.lesions, recipe.site, recipe.matrix, modality=weighting)
        scan, cavity = (as_read(data, phantom.affine) for data in (phantom.hu, phantom.intracranial))
        began = time.perf_counter()
        right = mr.prepare(scan, Companions())
        seconds = time.perf_counter() - began
        fault = transform_fault(np.random.default_rng((*recipe.seed, FAULT)))
        wrong = mr.prepare(scan, Companions(transform_fault=fault))
        true = resample(cavity, right.affine, right.image.shape, right.mni_to_scan) > 0.5
        rows.append(
            {
                "mm": landmark_error(right.mni_to_scan, best_affine(phantom.subject, phantom.scan), inner_table),
                "dice": dice(right.brain_mask > 0, true),
                "right": right.quality["registration"],
                "wrong": wrong.quality["registration"],
                "accepted": not mr.judge(right.quality),
                "wrong_accepted": not mr.judge(wrong.quality),
                "seconds": seconds,
            }
        )
    table = pd.DataFrame(rows)
    spread = {
        name: [round(float(q), 3) for q in table[name].quantile([0, 0.5, 1])] for name in rows[0] if name[-1] != "d"
    }
    return {"n": len(table), **spread, **{n: int(table[n].sum()) for n in ("accepted", "wrong_accepted")}}


def on_head(head: Path, brain: Path | None) -> list[dict[str, Any]]:
    """A real head as it is, then turned, shifted and scaled on slices of 3 mm: error in mm and quality numbers."""
    mr, found = prepared_by("t1w"), []
    _, inner_table = load_template(mr._template_path)  # type: ignore[arg-type]
    scan = as_read(np.asarray(nib.load(head).dataobj, np.float32), nib.load(head).affine)  # type: ignore[attr-defined]
    for turn, offset, size in POSES:
        known = np.eye(4)
        known[:3, :3] = Rotation.from_rotvec(turn, degrees=True).as_matrix() * size
        known[:3, 3] = offset
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        affine[:3, 3] = known[:3, 3] - (105, 140, 105)
        posed = Volume(resample(scan, affine, (210, 280, 70), np.linalg.inv(known)), affine)
        one = mr.prepare(posed, Companions())
        row = {"turned": turn, "mm": landmark_error(one.mni_to_scan, known, inner_table), **one.quality}
        if brain:
            image = nib.load(brain)
            cut = as_read((np.asarray(image.dataobj) > 0).astype(np.float32), image.affine)  # type: ignore[attr-defined]
            to_head = np.linalg.inv(known) @ one.mni_to_scan
            row["dice"] = dice(one.brain_mask > 0, resample(cut, one.affine, one.image.shape, to_head) > 0.5)
        found.append({**row, "rejected": mr.judge(one.quality)})
    return found


def detected(run: Path, name: str) -> dict[str, Any]:
    """A detector evaluated on its run's cohort: AUC by its own score and by the chosen one, by kind of finding."""
    words = [f"run={run.name}", f"runs_dir={run.parent}", f"detector={name}", "logger=none", "images=0"]
    subprocess.run([sys.executable, "-m", "anomaly3d.evaluate", *words], check=True)
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    focus, chosen = choose_trained(run, name), metrics["score"]["chosen"]
    table = ranked(
        pd.read_csv(run / "evaluation" / focus.label / RESCORED, keep_default_na=False, dtype={"label": str})
    )
    a, b = (table[table["site"] == site] for site in "AB")
    where = metrics["localization"].get("lesion_mask", {})
    return {
        "chosen": chosen,
        "own": auc_of(a, "total").as_json(),
        "auc": auc_of(a, chosen).as_json(),
        "auc_b": auc_of(b, chosen).as_json(),
        "by_lesion": {kind: auc_of(of_lesion(a, kind), chosen).as_json() for kind in KINDS},
        "voxel_ap": where.get("standardised", {}).get("ap"),
    }


def main() -> None:
    """Measure what is missing, then write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", help="WEIGHTING=RUN")
    parser.add_argument("--head", type=Path)
    parser.add_argument("--brain", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = HERE / "mr.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def keep() -> None:
        with written_whole(path) as beside:
            beside.write_text(json.dumps(kept, indent=1) + "\n")

    for weighting in WEIGHTINGS:
        if weighting not in kept.setdefault("prepared", {}):
            kept["prepared"][weighting] = on_phantoms(weighting)
            keep()
    if asked.head and "head" not in kept:
        kept["head"] = on_head(asked.head, asked.brain)
        keep()
    for weighting, run in (word.split("=") for word in asked.runs):
        for name in DETECTORS:
            there = (Path(run) / name).is_dir()
            if there and name not in kept.setdefault("found", {}).setdefault(weighting, {}):
                say(f"{weighting}: {name}")
                kept["found"][weighting][name] = detected(Path(run), name)
                keep()
    show(kept)


def table_of(rows: list[dict[str, str]]) -> str:
    """Rows of the same columns."""
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def show(kept: dict[str, Any]) -> None:
    """The tables of the README."""

    def three(values: list[float]) -> str:
        low, middle, high = values
        return f"{middle:g} ({low:g} to {high:g})"

    prepared = [
        {
            "weighting": weighting,
            "landmarks off, mm": three(told["mm"]),
            "Dice of the brain mask": three(told["dice"]),
            "score of right poses": three(told["right"]),
            "of wrong ones": three(told["wrong"]),
            "right accepted": f"{told['accepted']} of {told['n']}",
            "wrong accepted": f"{told['wrong_accepted']} of {told['n']}",
            "s a scan": three(told["seconds"]),
        }
        for weighting, told in kept["prepared"].items()
    ]
    fill(HERE / "README.md", "mr-prepared", table_of(prepared))

    def told(auc: dict[str, Any]) -> str:
        low, high = auc["ci95"]
        return f"{auc['value']:.3f} [{low:.3f}, {high:.3f}]"

    found = [
        {
            "weighting": weighting,
            "detector": name,
            "own score, A": told(one["own"]),
            "chosen, A": told(one["auc"]),
            "which": f"`{one['chosen']}`",
            "B": told(one["auc_b"]),
            **{kind.replace("_", " "): f"{one['by_lesion'][kind]['value']:.2f}" for kind in KINDS},
            "voxel AP": told(one["voxel_ap"]) if one["voxel_ap"] else "",
        }
        for weighting, detectors in kept.get("found", {}).items()
        for name, one in detectors.items()
    ]
    if found:
        fill(HERE / "README.md", "mr-found", table_of(found))


if __name__ == "__main__":
    main()
