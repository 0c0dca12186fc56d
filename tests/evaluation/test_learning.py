"""What is learned from the healthy splits, by the real inference on a few volumes of noise."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from anomaly3d.arguments import CONF
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.ensemble import Ensemble
from anomaly3d.errors import UserError
from anomaly3d.evaluation.learning import REFERENCE, Learned, folder_of, learn
from anomaly3d.evaluation.options import Options
from anomaly3d.evaluation.run import named_by_user
from anomaly3d.runs.folder import PhaseFolder, Trained
from anomaly3d.scoring.anomaly_maps import Healthy, maps_of
from anomaly3d.scoring.inference import Inference
from anomaly3d.scoring.scan_scores import map_scores
from anomaly3d.scoring.writer import read_scores
from tests.conftest import detector_config
from tests.writers import noise_cohort

TRAINER = yaml.safe_load((Path(CONF) / "trainer" / "auto.yaml").read_text()) | {"precision": "32-true"}


@pytest.mark.parametrize(("kept", "named"), [("config", True), ("pseudo-anomalies", False), (None, False)])
def test_what_an_evaluation_left_damaged_does_not_stop_the_next(monkeypatch, kept, named):
    """It is what mends it; a score that a user named stays where it can be read."""

    def load(trained):
        if kept is None:
            raise UserError("own.json and own.npz are of two calibrations")
        return Learned(Healthy(0, np.zeros(()), {}, {}, {}), {}, {}, "peak", kept, [])

    monkeypatch.setattr(Learned, "load", load)
    assert named_by_user(None) is named


@pytest.mark.parametrize("reference", ["validation", REFERENCE])
def test_whoever_says_what_is_usual_is_judged_by_the_others(tmp_path, reference):
    """The combined score's healthy scans, each by a mean and spread that it has no part in."""
    counts = {"train": 4, "validation": 5, **({REFERENCE: 6} if reference == REFERENCE else {}), "calibration": 3}
    data = HeadCTDataModule(noise_cohort(tmp_path, 16, **counts), 2, 1, seed=1)
    data.prepare_data()
    data.setup()
    ensemble = Ensemble({name: detector_config(name) for name in ("pca", "mean_volume")}, ["exceedance", "peak"])
    ensemble.fit(*(data.volumes(*what) for what in (("train",), ("validation",), ("train", "brain_mask"))))
    stage = tmp_path / "run" / "ensemble" / "fit"
    stage.mkdir(parents=True)
    ensemble.save(stage / "model.pt")
    lineage = {"title": "ensemble", "role": "method", "reads": [], "settings": {"detector": {"name": "ensemble"}}}
    (stage / "lineage.json").write_text(json.dumps(lineage))
    trained, out = Trained("ensemble", "fit", PhaseFolder(stage), lineage), tmp_path / "out"
    options = Options(2, None, 0.1, 0.1, TRAINER, 1)
    torch.manual_seed(0)
    learned = learn(trained, data, Inference(data, TRAINER), out, options)
    assert learned.healthy.reference is not None
    folder = folder_of(out, reference)
    maps, table = maps_of(data.split(reference), folder), read_scores(folder / "scores.csv")
    assert len(maps) == counts[reference]
    for number, scan in enumerate(maps):
        others = Healthy.measure([other for other in maps if other is not scan], table.drop(index=number), ())
        expected = map_scores(scan.read(), dataclasses.replace(others, reference=None))
        for name in ("exceedance", "peak"):
            assert learned.healthy.reference.scores[name][number] == pytest.approx(expected[name], rel=1e-4), name
    assert np.ptp(learned.healthy.reference.scores["peak"]) > 0
