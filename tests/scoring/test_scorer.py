"""The class that scores in Python gives a method what the command gives it."""

import pandas as pd
import pytest
import torch

import anomaly3d
from anomaly3d import score, train
from anomaly3d.detectors.brain import brain_of
from tests.conftest import TINY


def test_a_method_that_judges_the_brain_is_given_its_mask(tiny_run, places, tmp_path):
    assert train.main(["detector=aeu", "run=masks", *places, *TINY, "logger=none"]) == 0
    run = tiny_run.parent / "masks"
    scan = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    assert score.main(["run=masks", *places, f"scans=[{scan}]", f"out={tmp_path}"]) == 0
    expected = pd.read_csv(tmp_path / "scores.csv").iloc[0]["total"]
    scorer = anomaly3d.Scorer.from_run(run, data_dir=places[0].split("=")[1])
    assert scorer.score(scan).scores["total"] == pytest.approx(expected, rel=1e-3)  # another batch size, in bfloat16
    prepared = scorer.prepare(scan)
    assert (brain_of({"image": torch.from_numpy(prepared.image)}).numpy() != (prepared.brain_mask > 0)).any()
    with_mask, without = (scorer.examine(prepared.image, *masks) for masks in ([prepared.brain_mask], []))
    assert float(with_mask.scores["total"]) == pytest.approx(expected, rel=1e-3)
    assert float(without.scores["total"]) != pytest.approx(expected, rel=1e-2)
