"""How hard the phantom cohort is: AUC of the controls on cohorts of several seeds; its bleeds in numbers.

``python -m experiments.phantom_difficulty.measure`` writes ``table.json`` and the tables of the README. Scans are
prepared in memory and kept as 64^3 volumes under ``runs/experiments/phantom_difficulty``; a second call does only what
is missing. The supervised control learns once, from labelled scans of a seed that no cohort uses, and is tested on
every cohort.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.cohort import Part, plan
from anomaly3d.cohorts.phantom.files import Recipe
from anomaly3d.cohorts.phantom.generate import generate
from anomaly3d.cohorts.phantom.lesions import TYPES
from anomaly3d.cohorts.phantom.versions import LATEST
from anomaly3d.detectors.base import Detector, build_detector, load_detector
from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.ncct import NCCT
from anomaly3d.statistics.auc import auc
from anomaly3d.system.device import fast_bfloat16
from anomaly3d.system.files import written_whole
from anomaly3d.system.instantiate import build
from anomaly3d.system.progress import track
from anomaly3d.system.workers import run_parallel
from experiments.preprocessing.measure import as_read, ncct_of_conf

WORK = Path("runs/experiments/phantom_difficulty") / f"phantom-v{LATEST}"
HERE = Path(__file__).parent
LABELLED_SEED = 0  # of the scans the supervised control learns from; cohorts have others
EPOCHS, BATCH = 100, 8  # of the supervised control
CONTROLS = ("bright_volume", "mean_volume", "zscore", "mirror", "pca", "twin")  # which a call of ``fit`` teaches
WINDOW = 32767  # of int16 for [-1, 1]
ROWS = {  # of the README: detector, its name, its bound
    "mean_volume": ("distance to the mean volume", "0.50-0.65"),
    "zscore": ("z-score at each voxel", "at most 0.75"),
    "mirror": ("left against right", "at most 0.75"),
    "bright_volume": ("HU threshold (volume above 55 HU)", "at most 0.80"),
    "pca": ("principal components", "at most 0.85"),
    "supervised": ("supervised network, 400 labelled phantoms", "at least 0.90"),
    "twin": ("lesion-free twin", "at least 0.97"),
}


def config_of(detector: str) -> dict[str, Any]:
    """``conf/detector``."""
    return yaml.safe_load((Path(CONF) / "detector" / f"{detector}.yaml").read_text())


def prepare_recipe(folder: Path, part: Part, recipe: Recipe, ncct: NCCT) -> None:
    """One phantom, and its twin where it is tested, through the seven steps without touching the disk before."""
    done = folder / f"{recipe.scan_id}.npz"
    if done.exists():
        return
    torch.set_num_threads(1)
    size = {"site": recipe.site, "matrix": recipe.matrix, "slices": recipe.slices, "version": recipe.version}
    phantom = generate(recipe.seed, recipe.lesions, **size)  # type: ignore[arg-type]
    twin = generate(recipe.seed, [], twin=True, **size) if part.split == "test" else None  # type: ignore[arg-type]
    lesion = {"lesion": as_read(phantom.lesion, phantom.affine)} if part.split == "labelled" else {}
    prepared = ncct.prepare(
        as_read(phantom.hu, phantom.affine),
        Companions(masks=lesion, twin=as_read(twin.hu, twin.affine) if twin else None),
    )
    blood = phantom.lesion > 0
    ml = float(abs(np.linalg.det(phantom.affine))) / 1000
    facts = {
        "ml": float(blood.sum() * ml),
        "displaced_ml": float(phantom.mass_effect.sum() * ml),
        "shift_mm": phantom.midline_shift(),
        "hu": float(np.median(phantom.hu[blood])) if blood.any() else None,
        "lesions": recipe.lesions,
        "age": phantom.subject.age,
    }
    volumes = {"image": prepared.image, **prepared.extra}
    with written_whole(done) as path:
        np.savez_compressed(
            path,
            facts=json.dumps(facts),
            **{k: np.rint(v.astype(np.float32) * WINDOW).astype(np.int16) for k, v in volumes.items()},
        )


def load(folder: Path, scans: list[tuple[Part, Recipe]], kind: str = "image") -> torch.Tensor:
    """Volumes ``(N, 1, D, H, W)`` of a list of scans."""
    return torch.stack(
        [torch.from_numpy(np.load(folder / f"{r.scan_id}.npz")[kind].astype(np.float32) / WINDOW) for _, r in scans]
    )[:, None]


def facts_of(folder: Path, scans: list[tuple[Part, Recipe]]) -> list[dict[str, Any]]:
    """What is known of each scan."""
    return [json.loads(str(np.load(folder / f"{r.scan_id}.npz")["facts"])) for _, r in scans]


@torch.no_grad()
def scores_of(detector: Detector, images: torch.Tensor, twins: torch.Tensor) -> np.ndarray:
    """Anomaly scores in batches of 16."""
    batches: list[Any] = [{"image": x, "twin": t} for x, t in zip(images.split(16), twins.split(16), strict=True)]
    return torch.cat([detector.examine(batch).scores["total"] for batch in batches]).double().numpy()


def make(seed: int, counts: dict[str, int], purpose: str, workers: int) -> tuple[Path, dict[str, list[Any]]]:
    """Prepare what is missing of a cohort; its folder, and its scans by split."""
    folder = WORK / f"{purpose}-{seed}"
    ncct = ncct_of_conf()
    scans = plan(counts, seed, purpose)
    missing = [s for s in scans if not (folder / f"{s[1].scan_id}.npz").exists()]
    jobs = [(folder, *s, ncct) for s in missing]
    for _ in run_parallel(prepare_recipe, jobs, workers, f"cohort {purpose} {seed}"):
        pass
    return folder, {s: [x for x in scans if x[0].split == s] for s in ("train", "validation", "test", "labelled")}


def train_supervised(each: int, purpose: str, workers: int) -> Detector:
    """The supervised control, from ``each`` healthy and as many abnormal scans."""
    counts = {"labelled_normal": each, "labelled_lesion": each}
    folder, by = make(LABELLED_SEED, counts, purpose, workers)
    path = folder / f"supervised-{2 * each}.pt"
    if not path.exists():
        learn(*(load(folder, by["labelled"], kind) for kind in ("image", "lesion"))).save(path)
    return load_detector(path)


def learn(images: torch.Tensor, lesions: torch.Tensor) -> Detector:
    """The supervised control by the optimizer and schedule of its config.

    From volumes and masks ``(N, 1, D, H, W)``: healthy ones, then as many abnormal ones.
    """
    labels = (torch.arange(len(images)) >= len(images) // 2).float()
    config, steps = config_of("supervised"), len(images) // BATCH
    torch.manual_seed(0)
    detector = build_detector(config["module"])
    optimizer = build(config["fit"]["optimizer"], "optimizer")(detector.parameters())
    schedule = build({**config["fit"]["scheduler"], "total_steps": EPOCHS * steps}, "scheduler")(optimizer)
    for _ in track(range(EPOCHS), EPOCHS, "supervised control"):
        for rows in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            batch: Any = {"image": images[rows], "lesion_mask": lesions[rows], "label": labels[rows]}
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16("cpu")):
                loss = detector.loss(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return detector


def measure_cohort(
    seed: int, counts: dict[str, int], purpose: str, workers: int, supervised: Detector
) -> dict[str, Any]:
    """AUCs of all controls on one cohort; also kept as a JSON file of its own."""
    folder, by = make(seed, counts, purpose, workers)
    train, validation, images, twins = (
        load(folder, by["train"]),
        load(folder, by["validation"]),
        load(folder, by["test"]),
        load(folder, by["test"], "twin"),
    )
    labels = np.array([int(part.label) for part, _ in by["test"]])
    detectors: dict[str, Any] = {name: build_detector(config_of(name)["module"]) for name in CONTROLS}
    for detector in detectors.values():
        detector.fit(train, validation)
    detectors["supervised"] = supervised
    scores = {name: scores_of(detector, images, twins) for name, detector in detectors.items()}
    primary = np.array([(r.lesions or ("",))[0] for _, r in by["test"]])
    result: dict[str, Any] = {"auc": {name: auc(labels, s).as_json() for name, s in scores.items()}, "by_lesion": {}}
    for kind in TYPES:
        rows = (labels == 0) | (primary == kind)
        result["by_lesion"][kind] = {n: round(auc(labels[rows], s[rows]).value, 3) for n, s in scores.items()}
    result["components"] = len(detectors["pca"].components)
    with written_whole(folder / "auc.json") as file:
        file.write_text(json.dumps(result, indent=1))
    return result


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean and range of a number over cohorts of different seeds."""
    return {"mean": round(float(np.mean(values)), 3), "range": [round(min(values), 3), round(max(values), 3)]}


def describe(bleeds: list[dict[str, Any]]) -> dict[str, Any]:
    """5th, 50th and 95th percentile of volume, displaced tissue, midline shift and density of single bleeds."""
    found: dict[str, Any] = {"n": len(bleeds)}
    for key in ("ml", "displaced_ml", "shift_mm", "hu"):
        values = [b[key] for b in bleeds if b[key] is not None]
        found[key] = [round(float(x), 1) for x in np.percentile(values, [5, 50, 95])] if values else None
    return found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def fill_readme(table: dict[str, Any]) -> None:
    """Put the numbers of ``table.json`` between the marks of the README."""
    difficulty = []
    for name, (words, bound) in ROWS.items():
        whole, by = table["auc"][name], [table["auc_by_lesion"][kind][name]["mean"] for kind in TYPES]
        low, high = whole["range"]
        difficulty.append([words, f"{whole['mean']:.3f} ({low:.2f}-{high:.2f})", bound, *(f"{v:.2f}" for v in by)])
    bleeds = []
    for kind, found in table["bleeds"].items():
        numbers = [found[key] for key in ("ml", "displaced_ml", "shift_mm", "hu")]
        bleeds.append([kind, str(found["n"]), *(" / ".join(f"{v:g}" for v in number) for number in numbers)])
    texts = {
        "difficulty": markdown(["detector", "AUC, mean (range)", "bound", *TYPES], difficulty),
        "bleeds": markdown(["single bleed", "n", "ml", "displaced, ml", "shift, mm", "HU in the scan"], bleeds),
    }
    readme = (HERE / "README.md").read_text()
    for mark, text in texts.items():
        before, rest = readme.split(f"<!-- {mark} -->\n")
        readme = f"{before}<!-- {mark} -->\n{text}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}"
    (HERE / "README.md").write_text(readme)


def main() -> None:
    """Measure cohorts of several seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--purpose", default="dev")
    parser.add_argument("--train", type=int, default=532)
    parser.add_argument("--validation", type=int, default=60)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--labelled", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    counts = {
        "train": arguments.train,
        "validation": arguments.validation,
        "test_normal": arguments.test,
        "test_lesion": arguments.test,
    }
    if LABELLED_SEED in arguments.seeds:
        parser.error(f"seed {LABELLED_SEED} is the supervised control's own")
    supervised = train_supervised(arguments.labelled, arguments.purpose, arguments.workers)
    results, bleeds = [], []
    for seed in arguments.seeds:
        results.append(measure_cohort(seed, counts, arguments.purpose, arguments.workers, supervised))
        print(seed, {name: round(a["value"], 3) for name, a in results[-1]["auc"].items()})
        ill = [s for s in plan(counts, seed, arguments.purpose) if s[0].split == "test" and s[1].lesions]
        bleeds += facts_of(WORK / f"{arguments.purpose}-{seed}", ill)
    table = {
        "phantom_version": LATEST,
        "purpose": arguments.purpose,
        "seeds": arguments.seeds,
        "counts": {**counts, "labelled": 2 * arguments.labelled},
        "auc": {n: over_seeds([r["auc"][n]["value"] for r in results]) for n in results[0]["auc"]},
        "auc_by_lesion": {
            kind: {n: over_seeds([r["by_lesion"][kind][n] for r in results]) for n in results[0]["auc"]}
            for kind in TYPES
        },
        "bleeds": {kind: describe([b for b in bleeds if b["lesions"] == [kind]]) for kind in TYPES},
    }
    (HERE / "table.json").write_text(json.dumps(table, indent=1) + "\n")
    fill_readme(table)
    print(json.dumps(table["auc"], indent=1))


if __name__ == "__main__":
    main()
