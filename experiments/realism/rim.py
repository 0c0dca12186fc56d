"""What the skull does to the brain's rim, before and after the correction: real heads beside phantoms, and thin blood.

``python -m experiments.realism.rim --scans ../shared/scans`` writes ``rim.json`` and ``rim.png`` (curves; no picture of
a head leaves this machine). "Before" is the product with ``correct_rim=false``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch

from anomaly3d.cohorts.phantom.generate import paint
from anomaly3d.cohorts.phantom.lesions import ExtraAxial
from anomaly3d.cohorts.phantom.scanner import acquire, draw_scan
from anomaly3d.cohorts.phantom.subject import draw_subject
from anomaly3d.cohorts.phantom.versions import VERSIONS
from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.brain_mask import distance
from anomaly3d.preprocessing.crop import working_grid
from anomaly3d.preprocessing.ncct import NCCT, thick_slices
from anomaly3d.preprocessing.rim import corrected
from anomaly3d.scans.readers import HU_MIN, read_ct
from anomaly3d.scans.volume import Volume, no_finer, resample
from experiments.preprocessing.measure import HEADS, as_read, ncct_of_conf

HERE = Path(__file__).parent
SEED = 777
LAYERS = np.arange(0, 21, 1.5)  # mm inside the mask
THICK = (1.0, 2.0, 3.0)  # mm of blood
BRIGHT, BONE = 55.0, 100.0  # HU


def bright_ml(prepared: Any, ncct: NCCT) -> float:
    """ml of the prepared brain above ``BRIGHT``, in MNI space."""
    hu = ncct.to_physical(prepared.image)[prepared.brain_mask > 0]
    return float((hu > BRIGHT).sum() * np.linalg.norm(prepared.affine[:3, :3], axis=0).prod() / 1000)


def rim_of(scan: Volume, ncct: NCCT, plain: NCCT) -> dict[str, Any]:
    """The numbers of one healthy head."""
    after, before = ncct.prepare(scan, Companions()), plain.prepare(scan, Companions())
    affine, shape = working_grid(ncct.working_spacing)
    hu = resample(no_finer(scan, ncct.working_spacing), affine, shape, after.mni_to_scan, HU_MIN)
    tissue = ncct.tissue(scan, hu, None, after.mni_to_scan)
    flat = corrected(tissue, thick_slices(scan, after.mni_to_scan)[0], ncct.working_spacing)
    depth, mask = distance(tissue.mask, ncct.working_spacing), tissue.mask

    def profile(values: np.ndarray) -> list[float]:
        inside = np.digitize(depth, LAYERS, right=True)
        return [round(float(np.median(values[mask & (inside == k)])), 1) for k in range(1, len(LAYERS))]

    return {
        "bright_ml_before": round(bright_ml(before, plain), 1),
        "bright_ml_after": round(bright_ml(after, ncct), 1),
        "bone_share_before": round(float((hu[mask] > BONE).mean()), 4),
        "bone_share_after": round(float((flat[mask] > BONE).mean()), 4),
        "noise_hu": after.quality["noise_hu"],
        "profile_before": profile(hu),
        "profile_after": profile(flat),
    }


def thin_blood(index: int, thickness: float, ncct: NCCT) -> dict[str, float]:
    """What is left of a thin subdural: share of its voxels inside the mask, and of its excess HU at 64^3.

    The same head, noise and transform with and without it; the excess is what was painted, without noise.
    """
    streams = [np.random.default_rng((SEED, index, k)) for k in range(2)]
    subject = draw_subject(streams[0], VERSIONS[3])
    scan = draw_scan(streams[1], subject.scale, VERSIONS[3].sites["AB"[index % 2]], 256, 36)
    direction = ((-1) ** (index // 2) * 0.9, (0.3, -0.4)[index % 2], 0.3)
    blood = ExtraAxial(direction, thickness, 40.0, True, 62.0, 0.0, film=False)
    painted = [paint(subject, lesions, scan) for lesions in ([blood], [])]
    with_blood, without = (
        as_read(acquire(p.values, scan, np.random.default_rng((SEED, index, 2))), scan.affine) for p in painted
    )
    excess = float((painted[0].hu - painted[1].hu).sum()) * with_blood.voxel_ml
    prepared = ncct.prepare(with_blood, Companions(twin=without))
    affine, shape = working_grid(ncct.working_spacing)
    hu = resample(no_finer(with_blood, ncct.working_spacing), affine, shape, prepared.mni_to_scan, HU_MIN)
    share = Volume(ncct.tissue(with_blood, hu, None, prepared.mni_to_scan).share, affine)
    where = as_read(painted[0].blood.astype(np.float32), scan.affine).data > 0.5
    inside = resample(share, with_blood.affine, with_blood.data.shape, np.linalg.inv(prepared.mni_to_scan))
    gained = (prepared.image - prepared.extra["twin"]).sum() * ncct.per_unit
    ml = (
        np.linalg.norm(prepared.affine[:3, :3], axis=0).prod() / 1000 * abs(np.linalg.det(prepared.mni_to_scan[:3, :3]))
    )
    return {"voxels": float((inside[where] > 0.5).mean()), "excess": float(gained * ml / excess)}


def draw(table: dict[str, Any], path: Path) -> None:
    """Median HU against depth of each head, before and after."""
    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    middles = (LAYERS[1:] + LAYERS[:-1]) / 2
    for ax, when in zip(axes, ("before", "after"), strict=True):
        for name, row in sorted(table["heads"].items(), key=lambda item: item[0] in HEADS):  # real heads on top
            real = name in HEADS
            style = {"linewidth": 2.2, "label": name} if real else {"color": "0.75", "linewidth": 0.8}
            ax.plot(middles, row[f"profile_{when}"], **style)
        ax.set(title=when, xlabel="mm inside the inner table", ylim=(20, 110))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("median HU")
    axes[0].legend(frameon=False, fontsize=8, title="phantoms in grey", title_fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure and write; what is there already is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=12)
    parser.add_argument("--thin", type=int, default=6, help="heads with thin blood")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ncct, plain = ncct_of_conf(), ncct_of_conf()
    plain.correct_rim = False
    kept = HERE / "rim.json"
    table: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"heads": {}, "thin_blood": {}}

    def keep(kind: str, name: str, found: Any) -> None:
        table[kind][name] = found
        print(kind, name, found, flush=True)
        kept.write_text(json.dumps(table, indent=1) + "\n")

    for name in HEADS:
        if name not in table["heads"]:
            keep("heads", name, rim_of(read_ct(arguments.scans / f"{name}.nii.gz"), ncct, plain))
    for index in range(arguments.phantoms):
        if f"phantom-{index}" not in table["heads"]:
            streams = [np.random.default_rng((SEED, 100 + index, k)) for k in range(3)]
            subject = draw_subject(streams[0], VERSIONS[3])
            scan = draw_scan(streams[1], subject.scale, VERSIONS[3].sites["AB"[index % 2]], 256, 36)
            hu = acquire(paint(subject, [], scan).values, scan, streams[2])
            keep("heads", f"phantom-{index}", rim_of(as_read(hu, scan.affine), ncct, plain))
    for thickness in THICK:
        if str(thickness) not in table["thin_blood"]:
            found = [thin_blood(index, thickness, ncct) for index in range(arguments.thin)]
            keep("thin_blood", str(thickness), {k: [round(f[k], 3) for f in found] for k in found[0]})
    draw(table, HERE / "rim.png")


if __name__ == "__main__":
    main()
