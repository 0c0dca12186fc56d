"""What a second window could show: ``python -m experiments.beyond.windows NAME=FOLDER ...`` -> windows.json.

Each FOLDER is a prepared cohort of head CT. Counted are brain voxels at the ends of the window, beyond which another
one would tell values apart, and those that ``densest_hu`` leaves out; how many of them lie in a lesion.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.scans.nifti import voxels
from anomaly3d.system.files import written_whole
from experiments.beyond.kept import HERE

END = 0.999  # of [-1, 1]
DENSEST = (90 + 20) / 60 - 1  # 90 HU in -20 to 100 HU


def counted(folder: Path) -> dict[str, int]:
    """Over all accepted scans of a cohort."""
    found = dict.fromkeys(("scans", "brain", "top", "bottom", "above 90 HU", "lesion", "lesion, above 90 HU"), 0)
    for row in PreparedCohort.read(folder, lambda numbers: []).table.to_dict("records"):
        x = voxels(row["image"])
        brain = voxels(row["brain_mask"]) > 0
        lesion = brain & (voxels(row["lesion_mask"]) > 0) if row["lesion_mask"] else np.zeros_like(brain)
        found["scans"] += 1
        for name, where in {
            "brain": brain,
            "top": brain & (x > END),
            "bottom": brain & (x < -END),
            "above 90 HU": brain & (x > DENSEST),
            "lesion": lesion,
            "lesion, above 90 HU": lesion & (x > DENSEST),
        }.items():
            found[name] += int(where.sum())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cohorts", nargs="+", help="NAME=FOLDER")
    asked = parser.parse_args()
    found = {name: counted(Path(folder)) for name, folder in (word.split("=") for word in asked.cohorts)}
    with written_whole(HERE / "windows.json") as beside:
        beside.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
