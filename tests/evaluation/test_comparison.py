"""Runs of several seeds and settings in one table, from folders as training and evaluation leave them."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from anomaly3d import compare
from anomaly3d.evaluation.gathering import Training, distinct_names, gather
from anomaly3d.statistics.auc import auc as auc_of
from tests.conftest import refused

LABELS = np.repeat([0, 1], 20)


def leave(runs, name, seed, kappa, quality, lr=1e-3):
    """What a run with two phases leaves; its test scores tell abnormal scans by ``quality`` standard deviations."""
    for phase in ("gan", "encoder"):
        folder = runs / name / "fanogan" / phase
        folder.mkdir(parents=True)
        (folder / "model.pt").touch()
        detector = {"name": "fanogan", "phases": ["gan", "encoder"], "module": {"kappa": kappa}}
        settings = {"seed": seed, "detector": detector, "phase": {"lr": lr if phase == "gan" else 1e-3}}
        settings["dataset"] = {"root": f"/somewhere/{name}"}
        lineage = {"finished": True, "settings": settings, "can_score": phase == "encoder", "role": "method"}
        lineage["parent_sha256"] = None if phase == "gan" else hashlib.sha256(b"").hexdigest()
        (folder / "lineage.json").write_text(json.dumps(lineage))
    scores = np.random.default_rng(seed).normal(size=40) + quality * LABELS
    rows = {"scan_id": [f"s{i:02}" for i in range(40)], "subject_id": [f"p{i:02}" for i in range(40)]}
    rows |= {"label": LABELS, "group": np.where(LABELS, "tbi", "normal"), "total": scores}
    rows |= {"cohort": "own", "lesions": np.where(LABELS, "epidural", "")}
    rows["lesion_ml"] = np.where(LABELS, "8.125", "")
    place = runs / name / "evaluation" / "fanogan"
    place.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(place / "scores.csv", index=False)
    (place / "inference.json").write_text(json.dumps({"model": hashlib.sha256(b"").hexdigest()}))
    (place.parent / "metrics.json").write_text(json.dumps({"focus": "fanogan", "detectors": {"fanogan": {}}}))
    return scores


@pytest.fixture
def runs(tmp_path):
    """Two values of kappa, three seeds each."""
    for seed in (1, 2, 3):
        for kappa, quality in ((0.1, 1.5 + 0.1 * seed), (1.0, 0.2 * seed)):
            leave(tmp_path, f"kappa-{kappa}-{seed}", seed, kappa, quality)
    return tmp_path


def test_runs_are_gathered_by_what_sets_them_apart_but_for_the_seed(runs):
    assert gather(runs, ["kappa-*"]) == {
        "kappa=0.1": [f"kappa-0.1-{seed}" for seed in (1, 2, 3)],
        "kappa=1.0": [f"kappa-1.0-{seed}" for seed in (1, 2, 3)],
    }
    leave(runs, "other", 1, 1.0, 1.0, lr=1e-4)  # another first phase
    assert list(gather(runs, ["kappa-1.0-*", "other"])) == ["lr=0.001", "lr=0.0001"]
    assert list(gather(runs, ["kappa-1.0-*"])) == ["fanogan"]
    assert list(gather(runs, ["other", "kappa-*/fanogan"])) == [
        "kappa=1.0, lr=0.0001",
        "kappa=0.1, lr=0.001",
        "kappa=1.0, lr=0.001",
    ]


def test_settings_of_a_phase_that_another_did_not_begin_with_do_not_name_it(runs):
    """The first phase of one was trained anew; whether its old settings were others is not known any more."""
    (runs / "kappa-1.0-2" / "fanogan" / "gan" / "model.pt").write_bytes(b"trained anew")
    found = gather(runs, ["kappa-1.0-*"])
    assert sorted(map(sorted, found.values())) == [["kappa-1.0-1", "kappa-1.0-3"], ["kappa-1.0-2"]]
    assert any(f"parent={hashlib.sha256(b'').hexdigest()[:8]}" in name for name in found)


def test_scores_of_an_earlier_training_are_refused(runs, capsys):
    """The table would show them beside the settings of the new one."""
    (runs / "kappa-1.0-2" / "fanogan" / "encoder" / "model.pt").write_bytes(b"trained anew")
    assert compare.main(["runs=[kappa-*]", f"runs_dir={runs}"]) == 2
    refused(capsys, "kappa-1.0-2 was trained anew since", "anomaly3d.evaluate run=kappa-1.0-2")
    assert compare.main(["detectors={a: [kappa-0.1-1], b: [kappa-1.0-2]}", f"runs_dir={runs}"]) == 2
    refused(capsys, "kappa-1.0-2 was trained anew since")
    assert not (runs / "compared.json").exists()


def test_few_subjects_are_told(tmp_path, capsys):
    for name, quality in (("a", 1.0), ("b", 0.5)):
        leave(tmp_path, name, 1, 1.0, quality)
        path = tmp_path / name / "evaluation" / "fanogan" / "scores.csv"
        pd.read_csv(path).iloc[[*range(20), 25]].to_csv(path, index=False)
    assert compare.main(["detectors={a: a, b: b}", f"runs_dir={tmp_path}"]) == 0
    assert "subjects in the smaller class: 1" in capsys.readouterr().out
    found = json.loads((tmp_path / "compared.json").read_text())
    assert (found["difference"]["b"]["ci95"], found["difference"]["b"]["p_holm"]) == ([-1, 1], 1)


def test_names_say_what_differs():
    def training(label, **settings):
        return Training(label, 0, settings)

    a, b = {"fit.model.width": 8, "fit.x.beta": 1}, {"fit.model.width": 8, "fit.x.beta": 2}
    vae = [training("vae", **a), training("vae", **b)]
    assert distinct_names(vae) == ["beta=1", "beta=2"]
    assert distinct_names([*vae, training("pca", **{"fit.n": 3})]) == ["vae, beta=1", "vae, beta=2", "pca"]
    clash = [training("vae", **{"a.lr": 1, "b.lr": 2}), training("vae", **{"a.lr": 2, "b.lr": 2})]
    assert distinct_names(clash) == ["lr=1", "lr=2"]
    clash.append(training("vae", **{"a.lr": 2, "b.lr": 3}))
    assert distinct_names(clash) == ["a.lr=1, b.lr=2", "a.lr=2, b.lr=2", "a.lr=2, b.lr=3"]


def test_the_table_has_mean_spread_and_both_tests(runs, capsys):
    assert compare.main(["runs=[kappa-*]", f"runs_dir={runs}"]) == 0
    found = json.loads((runs / "compared.json").read_text())
    good, bad = found["auc"]["kappa=0.1"], found["auc"]["kappa=1.0"]
    table = pd.read_csv(runs / "kappa-0.1-2" / "evaluation" / "fanogan" / "scores.csv")
    assert good["runs"][1] == {"seed": 2, "auc": pytest.approx(auc_of(LABELS, table["total"].to_numpy()).value)}
    each = [np.array([run["auc"] for run in entry["runs"]]) for entry in (good, bad)]
    assert good["value"] == pytest.approx(each[0].mean())
    assert good["spread"] == {"value": pytest.approx(each[0].std(ddof=1)), "ci95": good["spread"]["ci95"], "n": 3}
    (difference,) = found["difference"].values()
    assert difference["over_seeds"]["value"] == pytest.approx((each[0] - each[1]).mean())
    assert difference["over_seeds"]["n"] == 3
    assert difference["p"] < 0.05
    assert "kappa=0.1" in capsys.readouterr().out


def test_two_seeds_or_unlike_ones_get_no_test_over_seeds(runs):
    two = "detectors={a: [kappa-0.1-1,kappa-0.1-2], b: [kappa-1.0-1,kappa-1.0-2]}"
    unlike = "detectors={a: [kappa-0.1-1,kappa-0.1-2,kappa-0.1-3], b: [kappa-1.0-1,kappa-1.0-2]}"
    for groups in (two, unlike):
        assert compare.main([groups, f"runs_dir={runs}"]) == 0
        (difference,) = json.loads((runs / "compared.json").read_text())["difference"].values()
        assert "over_seeds" not in difference
        assert difference["p"] <= 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["runs=[kapa-*]"], "runs=kapa-*: no run of"),
        (["runs=[kappa-*/vae]"], "holds no such detector"),
        (["runs=5"], "runs=5: no run of"),
        (["runs=[kappa-*]", "out=null"], "out=None must be a file"),
        (["runs=[kappa-*]", "detectors={a: [kappa-0.1-1]}"], "which runs?"),
        (["detectors=[kappa-0.1-1]"], "detectors=... takes runs by name"),
        (["detectors={a: [kappa-0.1-1/pcaa]}"], "the evaluation of run kappa-0.1-1 holds fanogan, not pcaa"),
        (["detectors={a: [kappa-7]}"], "holds no evaluation"),
        (["runs=kapa-*"], "runs=kapa-*: no run of"),
        (["detectors={a: [kappa-0.1-1], b: []}"], "detectors: b takes one run or several"),
        (["detectors={a: [kappa-0.1-1], b: null}"], "detectors: b takes one run or several"),
        (["detectors={a: [kappa-0.1-1,kappa-0.1-1/fanogan]}"], "detectors: a names a training twice"),
    ],
)
def test_mistakes_are_one_sentence(runs, capsys, words, told):
    assert compare.main([*words, f"runs_dir={runs}"]) == 2
    refused(capsys, told)


@pytest.mark.parametrize(
    ("word", "other"), [(",p", ",q"), (",own,", ",theirs,"), (",epidural", ",subdural"), (",8.125", ",8.25")]
)
def test_scans_of_other_people_are_other_scans(runs, capsys, word, other):
    """Two studies may both call theirs sub-01."""
    place = runs / "kappa-1.0-2" / "evaluation" / "fanogan" / "scores.csv"
    place.write_text(place.read_text().replace(word, other))
    assert compare.main(["detectors={a: [kappa-0.1-1], b: [kappa-1.0-2]}", f"runs_dir={runs}"]) == 2
    refused(capsys, "kappa-1.0-2 was tested on other scans than the first run")


def test_the_same_training_twice_is_refused(runs, capsys):
    leave(runs, "kappa-again", 3, 1.0, 1.0)
    assert compare.main(["runs=[kappa-*]", f"runs_dir={runs}"]) == 2
    refused(capsys, "kappa-1.0-3 and kappa-again have the same settings and seed=3")
