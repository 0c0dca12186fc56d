"""Heads whose skull another tool has removed: ``python -m experiments.preprocessing.stripped``.

Phantoms of a ``dev`` seed, cut to their true intracranial space, are prepared with ``preprocessing.stripped=true``, and
once more from a pose that is wrong by one of the phantom's faults. Writes ``stripped.json``.
"""

import json

import numpy as np
import pandas as pd
import yaml

from anomaly3d.atlas.template import load_template
from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.cohort import plan
from anomaly3d.cohorts.phantom.faults import transform_fault
from anomaly3d.cohorts.phantom.files import FAULT
from anomaly3d.cohorts.phantom.generate import best_affine, generate
from anomaly3d.preprocessing.base import Companions, Preprocessor
from anomaly3d.preprocessing.head import HeadPreprocessor
from anomaly3d.scans.readers import HU_MIN
from anomaly3d.system.files import written_whole
from anomaly3d.system.instantiate import build
from anomaly3d.system.progress import track
from experiments.preprocessing.measure import DATA, HERE, as_read, landmark_error

SEED, COUNTS = 31, {"test_normal": 8, "test_lesion": 8, "b_test_normal": 4, "b_test_lesion": 4}


def main() -> None:
    """Measure and write: smallest, middle and largest value."""
    with open(f"{CONF}/preprocessing/ncct.yaml") as file:
        settings = {**yaml.safe_load(file), "stripped": True}
    ncct = build(settings, "preprocessing config", Preprocessor)
    assert isinstance(ncct, HeadPreprocessor)
    ncct.setup(DATA)
    _, inner_table = load_template(ncct._template_path)  # type: ignore[arg-type]
    recipes, rows = [recipe for _, recipe in plan(COUNTS, SEED, matrix=192)], []
    for recipe in track(recipes, len(recipes), "stripped phantoms"):
        phantom = generate(recipe.seed, recipe.lesions, recipe.site, recipe.matrix)
        brain = np.where(phantom.intracranial > 0, phantom.hu, HU_MIN).astype(np.float32)
        scan = as_read(brain, phantom.affine)
        fault = transform_fault(np.random.default_rng((*recipe.seed, FAULT)))
        right, wrong = (ncct.prepare(scan, Companions(transform_fault=each)) for each in (None, fault))
        rows.append(
            {
                "mm": landmark_error(right.mni_to_scan, best_affine(phantom.subject, phantom.scan), inner_table),
                "right": right.quality["registration"],
                "wrong": wrong.quality["registration"],
                "accepted": not ncct.judge(right.quality),
                "wrong_accepted": not ncct.judge(wrong.quality),
            }
        )
    table = pd.DataFrame(rows)
    found = {n: [round(float(q), 3) for q in table[n].quantile([0, 0.5, 1])] for n in ("mm", "right", "wrong")}
    found |= {"n": len(table), **{n: int(table[n].sum()) for n in ("accepted", "wrong_accepted")}}
    print(found)
    with written_whole(HERE / "stripped.json") as path:
        path.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
