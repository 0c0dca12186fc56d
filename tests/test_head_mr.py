"""Head MR as a user has it: prepared, three phases, evaluation, a new scan, in z from end to end."""

import json

import nibabel as nib
import numpy as np
import pandas as pd

from anomaly3d import evaluate, score, train
from anomaly3d.cohorts.phantom.generate import generate
from tests.conftest import TINY, counts

COHORT = [
    "dataset=phantom_mr",
    "dataset.modality=t2w",
    "preprocessing=t2w",
    "run=mr",
    counts(train=3, validation=2, test_normal=1, test_lesion=2),
    *(setting for setting in TINY if not setting.startswith("dataset.counts")),
    "dataset.matrix=96",
    "dataset.slices=40",
    "preprocessing.quality.registration=[0.3,null]",  # coarse heads score lower
    "logger=none",
]


def test_a_study_of_mr_is_in_z_from_end_to_end(places, tmp_path, tiny_run):
    assert train.main([*COHORT, *places]) == 0  # no phase: all three
    assert evaluate.main(["run=mr", *places, "logger=none", "controls=[]"]) == 0
    run = tiny_run.parent / "mr"
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["flow"]["test"]["used"] == 3
    assert np.isfinite(metrics["results"]["all"]["auc"]["value"])
    table = pd.read_csv(run / "evaluation" / "fanogan" / "scores.csv", keep_default_na=False)
    assert {*table["lesions"].str.split(";").explode()} == {"", "infarct", "tumour"}
    page = (run / "evaluation" / "report.html").read_text()
    assert '"unit": "z"' in page
    assert '"unit": "HU"' not in page

    phantom = generate((77, 3), ["tumour"], matrix=96, slices=40, modality="t2w")
    scan = tmp_path / "tumour.nii.gz"
    nib.save(nib.Nifti1Image(phantom.hu, phantom.affine), scan)
    out = tmp_path / "scored"
    assert score.main(["run=mr", *places, f"scans=[{scan}]", f"out={out}"]) == 0
    (found,) = pd.read_csv(out / "scores.csv").to_dict("records")
    assert found["verdict"] == "accepted"
    assert np.isfinite(found["total"])
    names = ("input", "reconstruction", "residual", "brain_mask")
    shown, made, off, brain = (nib.load(out / "tumour" / f"{name}.nii.gz").get_fdata() for name in names)
    inside = brain > 0
    np.testing.assert_allclose(off[inside], (shown - made)[inside], atol=1e-3)  # not rounded to whole z
    assert not off[~inside].any()
    assert -3 <= shown.min() < -2.9 < 1 < shown.max() <= 7  # of the window, in z
    assert inside[phantom.lesion > 0].mean() > 0.9  # on the scan's own grid
