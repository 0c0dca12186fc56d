"""How real heads and healthy phantoms differ: brightness by depth and region, sulci, noise and its grain.

``python -m experiments.realism.compare --scans ../shared/scans`` writes ``realism.json``: for each head the ``numbers``
below, and for each number and each real head by how many standard deviations it lies off the phantoms' mean.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from anomaly3d.cohorts.phantom.generate import generate
from anomaly3d.cohorts.phantom.versions import LATEST
from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.brain_mask import distance
from anomaly3d.preprocessing.crop import working_grid
from anomaly3d.preprocessing.ncct import NCCT, thick_slices
from anomaly3d.preprocessing.rim import corrected
from anomaly3d.scans.readers import HU_MIN, read_ct
from anomaly3d.scans.volume import Volume, no_finer, resample
from experiments.preprocessing.measure import HEADS, as_read, ncct_of_conf

HERE = Path(__file__).parent
SEED = 778
PLAIN = 15.0  # HU: what lies further off the brain's median is no noise


def numbers(scan: Volume, ncct: NCCT) -> dict[str, float]:
    """What is compared, of one head: HU unless its name says otherwise."""
    prepared = ncct.prepare(scan, Companions())
    to_scan, spacing = prepared.mni_to_scan, ncct.working_spacing
    affine, shape = working_grid(spacing)
    hu = resample(no_finer(scan, spacing), affine, shape, to_scan, HU_MIN)
    tissue = ncct.tissue(scan, hu, None, to_scan)
    flat = corrected(tissue, thick_slices(scan, to_scan)[0], spacing)
    mask, depth = tissue.mask, distance(tissue.mask, spacing)
    x, y, z = np.ix_(*(affine[i, 3] + spacing * np.arange(n) for i, n in enumerate(shape)))
    high = mask & (z > 0)

    def middle(values: np.ndarray, where: np.ndarray, q: float = 50) -> float:
        return float(np.percentile(values[where], q))

    deep = middle(flat, high & (depth > 12))
    found = {f"rim_{low:g}_mm": middle(hu, high & (depth > low) & (depth <= low + 1.5)) for low in (1.5, 3.0, 6.0)}
    base = mask & (z < -15) & (z > -45)
    found |= {f"base_{low:g}_mm": middle(hu, base & (depth > low) & (depth <= low + 1.5)) for low in (1.5, 3.0, 6.0)}
    found |= {
        "deep": deep,
        "cupping": middle(hu, high & (depth > 7) & (depth < 9)) - middle(hu, high & (depth > 16) & (depth < 22)),
        "posterior_fossa": middle(flat, mask & (z < -22) & (y < -40) & (depth > 8)),
        "temporal": middle(flat, mask & (z < -5) & (z > -30) & (y > -35) & (np.abs(x) > 30) & (depth > 6)),
        "cisterns": middle(flat, mask & (np.abs(x) < 15) & (y > -12) & (y < 12) & (z > -24) & (z < -10), 15) - deep,
        "sulci": middle(flat, high & (depth > 4) & (depth < 14), 3) - deep,
        "cortex": middle(flat, high & (depth > 4) & (depth < 14), 75) - deep,
        "spread_64": float(ncct.to_physical(prepared.image)[prepared.brain_mask > 0].std()),
    }
    return found | grain(scan, depth, hu, affine, to_scan)


def grain(scan: Volume, depth: np.ndarray, hu: np.ndarray, affine: np.ndarray, to_scan: np.ndarray) -> dict[str, float]:
    """Noise of the scan's own slices: HU within 4 mm, correlation over 1 and 2 mm and from slice to slice."""
    order = np.argsort(-scan.spacing)  # slice axis first
    inside = resample(Volume(depth.astype(np.float32), affine), scan.affine, scan.data.shape, np.linalg.inv(to_scan))
    own, inside, spacing = scan.data.transpose(order), inside.transpose(order), scan.spacing[order]
    rest = own - ndimage.gaussian_filter(own, (0, *(2.0 / spacing[1:])))
    calm = (inside > 6) & (np.abs(own - np.median(hu[depth > 8])) < PLAIN)

    def correlation(shift: tuple[float, float, float]) -> float:
        moved, also = (ndimage.shift(v, shift, order=1, mode="nearest") for v in (rest, calm.astype(np.float32)))
        both = calm & (also > 0.99)
        return float(np.corrcoef(rest[both], moved[both])[0, 1])

    return {
        "noise_own": float(rest[calm].std()),
        "noise_1_mm": correlation((0, 0, 1.0 / spacing[2])),
        "noise_2_mm": correlation((0, 0, 2.0 / spacing[2])),
        "noise_next_slice": correlation((1, 0, 0)),
    }


def compared(table: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Mean and standard deviation of the phantoms, and of each real head the number and how many of these it is off."""
    phantoms = [row for name, row in table.items() if name not in HEADS]
    rows: dict[str, Any] = {}
    for key in phantoms[0]:
        values = np.array([row[key] for row in phantoms])
        mean, spread = values.mean(), values.std(ddof=1)
        rows[key] = {"phantoms": [round(float(mean), 3), round(float(spread), 3)]}
        for name in HEADS:
            rows[key][name] = [round(table[name][key], 3), round(float((table[name][key] - mean) / spread), 2)]
    return rows


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--phantoms", type=int, default=24, help="healthy, of each site in turn")
    parser.add_argument("--sites", default="AB")
    parser.add_argument("--version", type=int, default=LATEST)
    parser.add_argument("--out", type=Path, default=HERE / "realism.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ncct = ncct_of_conf()
    table = {name: numbers(read_ct(arguments.scans / f"{name}.nii.gz"), ncct) for name in HEADS}
    for index in range(arguments.phantoms):
        phantom = generate(
            (SEED, index), (), site=arguments.sites[index % len(arguments.sites)], version=arguments.version
        )
        table[f"phantom-{index}"] = numbers(as_read(phantom.hu, phantom.affine), ncct)
        print(index, {k: round(v, 2) for k, v in table[f"phantom-{index}"].items()}, flush=True)
    rows = compared(table)
    arguments.out.write_text(json.dumps({"compared": rows, "heads": table}, indent=1) + "\n")
    for key, row in rows.items():
        print(f"{key:18}", *(f"{name}: {values[0]:8.2f} {values[1]:6.2f}  " for name, values in row.items()))


if __name__ == "__main__":
    main()
