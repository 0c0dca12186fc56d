"""A real tilted, uneven DICOM series and its published straightened NIfTI through one detector: do they agree?

    python -m experiments.intake.ge --scans ../shared/scans --run demo

writes ``ge.json``. Both ways go through the whole ``score`` command; maps are compared in MNI space.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly3d import score
from anomaly3d.scans.nifti import voxels

HERE = Path(__file__).parent


def main() -> None:
    """Score both, and put what differs beside what calibration scans differ by."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--run", default="demo")
    parser.add_argument("--out", type=Path, default=Path("data/intake/ge"))
    arguments = parser.parse_args()
    names = ("ge_tilted_dicom", "ge_tilt18p5_deskewed_4mm.nii.gz")
    listed = ",".join(str((arguments.scans / name).resolve()) for name in names)
    assert score.main([f"run={arguments.run}", f"scans=[{listed}]", f"out={arguments.out}"]) == 0
    table = pd.read_csv(arguments.out / "scores.csv")
    inference = arguments.out / "inference"
    image, mask, found = (
        [voxels(next(Path("data").glob(f"scored-*/*/{kind}/{name}.nii.gz"))) for name in table["scan_id"]]
        if kind != "reconstruction"
        else [voxels(next(inference.rglob(f"{name}.nii.gz"))) for name in table["scan_id"]]
        for kind in ("image", "brain_mask", "reconstruction")
    )
    both = (mask[0] > 0) & (mask[1] > 0)
    residual = [i - r for i, r in zip(image, found, strict=True)]
    result = {
        "scores": table.drop(columns=["reasons", "source", "model"]).to_dict("records"),
        "dice_of_masks": round(float(2 * both.sum() / ((mask[0] > 0).sum() + (mask[1] > 0).sum())), 4),
        "correlation_of_images": round(float(np.corrcoef(image[0][both], image[1][both])[0, 1]), 4),
        "correlation_of_residuals": round(float(np.corrcoef(residual[0][both], residual[1][both])[0, 1]), 4),
        "median_difference_hu": round(float(np.median(np.abs(image[0] - image[1])[both])) * 60, 2),
    }
    (HERE / "ge.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
