"""Does the registration's score part good poses from wrong ones, on real heads as on phantoms?

``python -m experiments.realism.poses --scans ../shared/scans`` writes ``poses.json`` and ``poses.png``. Each head is
registered; then the found pose is turned (12 to 35 degrees), shifted (8 to 25 mm), scaled (by 10 to 30 %) or turned
by a quarter or half, and scored again. "Before": the correlation of all tones at 3 mm, the score until version 7.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.transform import Rotation

from anomaly3d.atlas import template
from anomaly3d.cohorts.phantom.generate import generate
from anomaly3d.preprocessing.ncct import NCCT
from anomaly3d.preprocessing.registration import CENTRE, CT, FINE, as_seen, make_level, score, shift, shrink
from anomaly3d.scans.readers import read_ct
from anomaly3d.scans.volume import Volume, no_finer
from experiments.preprocessing.measure import HEADS, as_read, ncct_of_conf

HERE = Path(__file__).parent
SEED = 881
FINDINGS = ((), (), (), ("subdural",), ("epidural",), ("intraparenchymal",), ("infarct",))
QUARTERS = ((180, 0, 0), (0, 180, 0), (0, 0, 180), (90, 0, 0), (-90, 0, 0))  # degrees


def wrong_poses(rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """What moves a head off its place, 4x4 about the brain's middle."""

    def about(rotation: np.ndarray, offset: np.ndarray) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = rotation, offset
        return shift(CENTRE) @ matrix @ shift(-CENTRE)

    def axis() -> np.ndarray:
        direction = rng.standard_normal(3)
        return direction / np.linalg.norm(direction)

    turned = [Rotation.from_rotvec(rng.uniform(12, 35) * axis(), degrees=True).as_matrix() for _ in range(8)]
    sizes = [(1 + rng.uniform(0.1, 0.3)) ** float(rng.choice([-1, 1])) for _ in range(6)]
    return {
        "turned": [about(turn, np.zeros(3)) for turn in turned],
        "shifted": [about(np.eye(3), rng.uniform(8, 25) * axis()) for _ in range(8)],
        "scaled": [about(np.eye(3) * size, np.zeros(3)) for size in sizes],
        "other axes": [about(Rotation.from_rotvec(q, degrees=True).as_matrix(), np.zeros(3)) for q in QUARTERS],
    }


def scores_of(scan: Volume, ncct: NCCT) -> dict[str, dict[str, list[float]]]:
    """Scores of the found pose and of wrong ones, before and after."""
    fixed = template.load_template(ncct._template_path)  # type: ignore[arg-type]
    averaged = no_finer(scan, ncct.working_spacing)
    found = ncct.register(averaged, None)
    small = shrink(averaged, ncct.registration_spacing)
    old = make_level(small, as_seen(fixed[0], small.spacing), fixed[1], FINE[0], CT.reach, FINE[1])
    poses = {"found": [np.eye(4)]} | wrong_poses(np.random.default_rng(SEED))
    return {
        kind: {
            "before": [round(old.correlation(found.mni_to_scan @ p @ shift(CENTRE)), 4) for p in moves],
            "after": [
                round(score(averaged, *fixed, ncct.registration_spacing, found.mni_to_scan @ p), 4) for p in moves
            ],
        }
        for kind, moves in poses.items()
    }


def summary(heads: dict[str, Any]) -> dict[str, Any]:
    """Per score: the lowest of good poses, what wrong poses reach, and the gap."""
    table: dict[str, Any] = {}
    for when in ("before", "after"):
        good = {name: row["found"][when][0] for name, row in heads.items()}
        wrong = np.array([s for row in heads.values() for k, v in row.items() if k != "found" for s in v[when]])
        phantoms = [s for name, s in good.items() if name.startswith("phantom")]
        table[when] = {
            **{name: good[name] for name in (*HEADS, "craniectomy")},
            "phantoms": [min(phantoms), float(np.median(phantoms)), max(phantoms)],
            "wrong": {
                "n": len(wrong),
                "95 %": round(float(np.quantile(wrong, 0.95)), 3),
                "largest": float(wrong.max()),
                "above .80": round(float((wrong > 0.80).mean()), 4),
            },
            "gap": round(min(good.values()) - float(wrong.max()), 3),
        }
    return table


def draw(heads: dict[str, Any], path: Path) -> None:
    """Both distributions of both scores."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
    rows = ("other axes", "scaled", "shifted", "turned", "found")
    for ax, when in zip(axes, ("before", "after"), strict=True):
        for name, head in heads.items():
            real = name in HEADS
            for y, kind in enumerate(rows):
                style = {"color": "#D55E00", "s": 30, "zorder": 3} if real else {"color": "0.6", "s": 8}
                ax.scatter(head[kind][when], np.full(len(head[kind][when]), y + 0.12 * real), **style)
        ax.set(title=when, xlabel="score", yticks=range(len(rows)), yticklabels=rows, xlim=(-0.3, 1))
        ax.axvline(0.80, color="black", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle("real heads in orange, phantoms in grey; the line: rejected below", fontsize=9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=14)
    arguments = parser.parse_args()
    ncct = ncct_of_conf()
    heads = {name: scores_of(read_ct(arguments.scans / f"{name}.nii.gz"), ncct) for name in HEADS}
    for index in range(arguments.phantoms):
        finding, site = FINDINGS[index % len(FINDINGS)], "ABC"[index % 3]
        phantom = generate((SEED, index), finding, site=site)
        heads[f"phantom-{index}"] = scores_of(as_read(phantom.hu, phantom.affine), ncct)
        print(index, heads[f"phantom-{index}"]["found"], flush=True)
    phantom = generate((SEED, 50), (), postoperative="craniectomy")
    heads["craniectomy"] = scores_of(as_read(phantom.hu, phantom.affine), ncct)
    table = summary(heads)
    (HERE / "poses.json").write_text(json.dumps(table, indent=1) + "\n")
    draw(heads, HERE / "poses.png")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
