"""The class that scores in Python gives a method what the command gives it."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import anomaly3d
from anomaly3d import evaluate, score, train
from anomaly3d.detectors.base import load_detector
from anomaly3d.errors import UserError
from anomaly3d.networks.person import FiLM
from anomaly3d.scoring.anomaly_maps import Ageing
from tests.conftest import TINY


def test_a_scan_of_known_age_is_judged_by_the_spread_at_that_age(tiny_run, places):
    """A spread that doubles every ten years of age, about a mean of 60 years."""
    scan = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/normal*"))[0]
    scorer = anomaly3d.Scorer.from_run(tiny_run, data_dir=places[0].split("=")[1])
    healthy, calibration = scorer.known
    ageing = {"residual": Ageing(2 * np.log(2) / 10, 60.0, 12.0)}
    scorer.known = replace(healthy, ageing=ageing), replace(calibration, score="standardised")
    unknown, old = (scorer.score(scan, age) for age in (float("nan"), "70"))
    assert (unknown.p_value, unknown.clusters.empty or unknown.clusters["p_value"].isna().all()) == (None, True)
    assert 0 < old.p_value <= 1
    for age in (-5, 6300):
        with pytest.raises(UserError, match="number of years"):
            scorer.score(scan, age)
    assert unknown.score == pytest.approx(4**1 * old.score, rel=1e-3)  # 70 is ten years above the mean, z is halved
    z = [r.maps["standardised"].get_fdata() for r in (unknown, old)]
    np.testing.assert_allclose(z[0], 2 * z[1], rtol=1e-3, atol=1e-4)


def test_networks_that_are_told_age_and_sex_get_those_of_the_scan(tiny_run, places, tmp_path):
    told = ["model.person=film", "run=told", *places, *TINY, "logger=none"]
    for phase in ("gan", "encoder"):
        assert train.main([f"+phase={phase}", *told]) == 0
    run = tiny_run.parent / "told"
    model = run / "fanogan" / "encoder" / "model.pt"
    detector = load_detector(model)
    for module in detector.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.map.weight)  # so few steps leave it near zero
    detector.save(model)
    scan = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    table = tmp_path / "table.csv"
    table.write_text(
        f"scan_id,subject_id,image,label,split,age,sex\nold,a,{scan},0,test,81,F\nnobody,b,{scan},0,test,,\n"
    )
    assert score.main(["run=told", *places, f"manifest={table}", f"out={tmp_path / 'out'}"]) == 0
    by_command = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("scan_id")["total"]
    scorer = anomaly3d.Scorer.from_run(run, data_dir=places[0].split("=")[1])
    old, nobody, man = (scorer.score(scan, *who).scores["total"] for who in ((81, "F"), (), (81, "M")))
    assert [old, nobody] == pytest.approx(by_command[["old", "nobody"]].tolist(), rel=1e-3)
    assert len({round(score, 4) for score in (old, nobody, man)}) == 3
    with pytest.raises(UserError, match="sex must be"):
        scorer.score(scan, sex="f")


def test_a_method_that_judges_the_brain_is_given_its_mask(tiny_run, places, tmp_path):
    assert train.main(["detector=aeu", "run=masks", *places, *TINY, "logger=none"]) == 0
    run = tiny_run.parent / "masks"
    scan = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    assert score.main(["run=masks", *places, f"scans=[{scan}]", f"out={tmp_path}"]) == 0
    expected = pd.read_csv(tmp_path / "scores.csv").iloc[0]["total"]
    scorer = anomaly3d.Scorer.from_run(run, data_dir=places[0].split("=")[1])
    assert scorer.score(scan).scores["total"] == pytest.approx(expected, rel=1e-3)  # another batch size, in bfloat16
    prepared = scorer.prepare(scan)
    found = scorer.examine(prepared.image, prepared.brain_mask)
    assert float(found.scores["total"]) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match="brain masks too"):
        scorer.examine(prepared.image)


def test_an_ensemble_is_judged_by_its_combined_score(tiny_run, places, tmp_path):
    """By ``score`` and by ``Scorer`` alike, among the healthy scans that the evaluation kept."""
    shared = ["run=several", *places]
    pictures = ["detector.module.members.denoising.module.width=8"]
    assert train.main(["detector=ensemble", *shared, *TINY, *pictures, "logger=none"]) == 0
    assert evaluate.main([*shared, "detector=ensemble", "controls=[]", "logger=none"]) == 0
    run = tiny_run.parent / "several"
    told = json.loads((run / "evaluation" / "metrics.json").read_text())["score"]
    assert (told["chosen"], set(told["pseudo_auc"]) >= {"combined", "pca_exceedance", "places"}) == ("combined", True)
    table = pd.read_csv(run / "evaluation" / "ensemble" / "rescored.csv")
    test = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    assert score.main([*shared, f"scans=[{test}]", f"out={tmp_path}"]) == 0
    found = pd.read_csv(tmp_path / "scores.csv").iloc[0]
    assert found["score_name"] == "combined"
    (row,) = table[table["scan_id"] == test.name.removesuffix(".nii.gz")].to_dict("records")
    assert found["score"] == pytest.approx(row["combined"], rel=1e-6)
    result = anomaly3d.Scorer.from_run(run, data_dir=places[0].split("=")[1]).score(test)
    assert (result.score_name, result.score) == ("combined", pytest.approx(found["score"], rel=1e-6))
    assert result.maps.keys() >= {"residual", "pca", "pca_standardised"}
