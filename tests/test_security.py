"""A run, a study's file or scans from somebody else: one sentence, nothing runs, nothing is written outside."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from anomaly3d import calibrate, evaluate, prepare, score, train
from anomaly3d.arguments import as_hydra
from anomaly3d.detectors.base import load_detector
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.scans.readers import read_image
from anomaly3d.scoring.scorer import Scorer
from tests.conftest import TINY, refused
from tests.malice import Payload, foreign

BUILT = ("callbacks.evil", "logger", "trainer", "data.transforms", "dataset", "preprocessing", "phase.module.optimizer")


@pytest.fixture
def mark(tmp_path):
    """A file that is there when something ran."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def borrowed(tiny_run, tmp_path):
    """A copy of the tiny run, as somebody could send one: its name for ``run=``, beside the session's data."""
    run = tiny_run.parent / f"borrowed-{tmp_path.name}"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("wandb", "scored", "evaluation"))
    yield run
    shutil.rmtree(run)


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".hydra" not in path.parts}


def edit(path: Path, *keys: str, **value) -> None:
    """Change one key of a JSON file."""
    content = json.loads(path.read_text())
    node = content
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value["to"]
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("place", BUILT)
def test_a_target_in_any_config_is_refused(places, mark, tmp_path, capsys, place):
    evil = foreign(mark)["through a module of ours"]
    known = ("_target_",) if place in ("dataset", "preprocessing", "trainer") else evil  # where other keys are mistakes
    words = [f"++{place}.{key}={as_hydra(evil[key])}" for key in known]
    if place == "callbacks.evil":
        words = [f"+callbacks.evil={as_hydra(evil)}"]
    runs = [f"runs_dir={tmp_path / 'runs'}", places[0]]
    assert train.main(["run=evil", *runs, *TINY, "+phase=gan", "logger=none", *words]) == 2
    refused(capsys, "_target_=anomaly3d.runs.lineage.subprocess.run")
    assert {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()} <= {".gan.lock"}


def test_a_study_file_runs_nothing(places, mark, tmp_path, capsys, monkeypatch):
    evil = foreign(mark)["another library"]
    other = tmp_path / "evil.yaml"  # beside the study: a config that would hand Hydra a callback of its own
    other.write_text("# @package _global_\n" + yaml.safe_dump({"hydra": {"callbacks": {"evil": evil}}}))
    climb = "../" * 20 + str(other.with_suffix(""))[1:]
    for content, words in (
        ({"callbacks.evil": evil}, "os.system"),
        ({"logger": evil}, ""),
        ({"phases": {"gan": {"module": {"optimizer": evil}}}}, "os.system"),
        ({"plugins": ["os"], "callbacks.evil": evil}, "plugins says whose code may run"),
        ({"preprocessing.mask_command": f"touch {mark} {{input}} {{output}}"}, "preprocessing.mask_command says"),
        ({"preprocessing": {"mask_command": f"touch {mark} {{input}} {{output}}"}}, "preprocessing.mask_command says"),
        ({"hydra.callbacks.evil": evil}, "unknown key"),
        ({"experiment": climb}, "is not the name of a file in conf/experiment"),
        ({"dataset": climb}, "is not the name of a file in conf/dataset"),
    ):
        study = tmp_path / "study.yaml"
        study.write_text(yaml.safe_dump(content))
        assert (
            train.main([f"study={study}", "run=evil", *places, *TINY, "+phase=gan", "trainer.fast_dev_run=true"]) == 2
        )
        refused(capsys, words)


def test_a_module_is_not_imported_to_ask_for_its_keys(places, mark, tmp_path, capsys, monkeypatch):
    (tmp_path / "beside.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["+callbacks.evil={_target_: beside.Thing}", "++callbacks.evil.key=1"]
    runs = [f"runs_dir={tmp_path / 'runs'}", places[0]]
    assert train.main(["run=evil", *runs, *TINY, "+phase=gan", *words]) == 2
    refused(capsys, "beside.Thing")
    assert not list(tmp_path.glob("runs/evil/*/gan/*"))  # nor a run of a logger


def test_what_a_run_remembers_runs_nothing(borrowed, places, mark, tmp_path, capsys):
    remembered = borrowed / "fanogan" / "gan" / "overrides.yaml"
    words = yaml.safe_load(remembered.read_text())
    touch = f"{{_target_: os.system, command: touch {mark}}}"
    for word in (f"+hydra.callbacks={{evil: {touch}}}", f"--config-dir={tmp_path}", "-m", "dataset=../../../evil"):
        remembered.write_text(yaml.safe_dump([*words, word]))
        assert train.main(["+phase=encoder", f"run={borrowed.name}", *places]) == 2
        refused(capsys, "overrides.yaml", "which is no setting of a phase")
    remembered.write_text(yaml.safe_dump([*words, f"preprocessing.mask_command=touch {mark} {{input}} {{output}}"]))
    assert train.main(["+phase=gan", f"run={borrowed.name}", *places]) == 0  # finished: without the command


def test_what_a_lineage_says_is_built_only_where_it_is_ours(borrowed, places, mark, bad_and_good, capsys):
    stages = sorted(borrowed.glob("fanogan/*/lineage.json"))
    evils = foreign(mark)
    for what, main, more in (
        ("through a module of ours", score.main, [f"root={bad_and_good}"]),
        ("a function of ours", evaluate.main, ["logger=none"]),
        ("another library", calibrate.main, [f"root={bad_and_good}", "site=x"]),
    ):
        for stage in stages:
            edit(stage, "settings", "preprocessing", to=evils[what])
        assert main([f"run={borrowed.name}", *places, *more]) == 2, what
        refused(capsys, evils[what]["_target_"])
    assert not (borrowed / "scored").exists()


def test_a_lineage_does_not_lead_out_of_the_data(borrowed, places, capsys):
    for key in ("cohort", "prepared"):
        for stage in borrowed.glob("fanogan/*/lineage.json"):
            edit(stage, key, to="../../elsewhere")
        assert evaluate.main([f"run={borrowed.name}", *places, "logger=none"]) == 2
        refused(capsys, "lineage.json", "'../../elsewhere'")
        for stage in borrowed.glob("fanogan/*/lineage.json"):
            edit(stage, key, to="x")


def test_a_model_file_runs_nothing(borrowed, mark, places, bad_and_good, capsys):
    model = borrowed / "fanogan" / "finetune" / "model.pt"
    stored = torch.load(model, weights_only=True)
    for what, evil in foreign(mark).items():
        torch.save({"config": {**evil, "more": [evil]}, "state": {}}, model)
        with pytest.raises(UserError):
            load_detector(model)
        torch.save({**stored, "config": {**stored["config"], "model": evil}}, model)
        with pytest.raises(UserError):
            load_detector(model)
        assert not mark.exists(), what
    torch.save({**stored, "more": Payload(mark)}, model)
    shutil.rmtree(model.parent / "calibration")  # thresholds of another model would be refused first
    assert score.main([f"run={borrowed.name}", *places, f"root={bad_and_good}"]) == 2
    refused(capsys, "model.pt", "could be code, and was not run")
    model.write_bytes(pickle.dumps(Payload(mark)))
    assert evaluate.main([f"run={borrowed.name}", *places, "logger=none", "controls=[]"]) == 2
    refused(capsys, "model.pt")


def test_a_checkpoint_that_a_resume_reads_runs_nothing(borrowed, mark, places, capsys):
    folder = borrowed / "fanogan" / "finetune"
    edit(folder / "lineage.json", "finished", to=False)
    (folder / "model.pt").unlink()
    last = folder / "checkpoints" / "last.ckpt"
    torch.save({**torch.load(last, weights_only=True), "more": Payload(mark)}, last)
    before = files(borrowed)
    assert train.main(["+phase=finetune", f"run={borrowed.name}", *places, *TINY]) == 2
    refused(capsys, "last.ckpt", "could be code, and was not run", "overwrite=true")
    assert files(borrowed) - before <= {borrowed / "fanogan" / ".finetune.lock"}


def test_healthy_statistics_run_nothing(borrowed, mark, places, bad_and_good, capsys):
    healthy = borrowed / "fanogan" / "finetune" / "calibration" / "own.npz"
    np.savez(healthy, count=np.array(1), brains=np.array([Payload(mark)], object))
    assert score.main([f"run={borrowed.name}", *places, f"root={bad_and_good}"]) == 2
    refused(capsys, "own.npz is damaged")
    assert not (borrowed / "scored").exists()


def test_the_skull_stripper_of_a_run_from_elsewhere_runs_only_when_it_is_said(
    borrowed, mark, places, bad_and_good, capsys
):
    stripper = f"touch {mark} {{input}} {{output}}"
    for stage in borrowed.glob("fanogan/*/lineage.json"):
        edit(stage, "settings", "preprocessing", "mask_command", to=stripper)
    assert score.main([f"run={borrowed.name}", *places, f"root={bad_and_good}"]) == 2
    refused(capsys, "if you trust it", f"mask_command={stripper}")
    with pytest.raises(UserError, match="if you trust it"):
        Scorer.from_run(borrowed, data_dir=places[0].split("=")[1])
    Scorer.from_run(borrowed, data_dir=places[0].split("=")[1], mask_command=stripper)
    said = [f"mask_command={stripper}", f"scans=[{bad_and_good}/text.nii]", f"out={mark.parent}/out"]
    assert (
        score.main([f"run={borrowed.name}", *places, *said]) == 3
    )  # it may; this scan is unreadable before it is asked


def test_no_name_leads_out_of_its_folder(tiny_run, bad_and_good, tmp_path, capsys):
    """For other names see ``tests/system/test_files.py``."""
    places = [f"data_dir={tmp_path / 'in' / 'data'}", f"runs_dir={tmp_path / 'in' / 'runs'}"]
    shutil.copytree(tiny_run / "fanogan", tmp_path / "in" / "runs" / "tiny" / "fanogan")
    before = files(tmp_path)
    value = as_hydra("../x")
    for main, words in (
        (train.main, [f"run={value}", *TINY, "+phase=gan"]),
        (evaluate.main, [f"run={value}"]),
        (score.main, [f"run={value}", f"root={bad_and_good}"]),
        (score.main, ["run=tiny", f"site={value}", f"root={bad_and_good}"]),
        (calibrate.main, ["run=tiny", f"site={value}", f"root={bad_and_good}"]),
        (prepare.main, [*TINY[:6], f"dataset.name={value}"]),
        (train.main, ["run=x", *TINY, f"detector.name={value}", "+phase=gan"]),
        (train.main, ["run=x", *TINY, "+phase=gan", f"++phase.name={value}"]),
    ):
        assert main([*words, *places]) == 2, words
        refused(capsys, "")
    assert files(tmp_path) == before


def test_a_recipe_among_scans_makes_only_images(tmp_path, mark):
    huge = {"_target_": "anomaly3d.cohorts.phantom.files.make_volume", "kind": "ct"}
    huge["phantom"] = {"scan_id": "a", "seed": [1], "matrix": 10**6}
    for evil in (*foreign(mark).values(), {"_target_": "anomaly3d.system.files.mark_output", "folder": str(mark)}):
        (tmp_path / "a.recipe").write_text(json.dumps(evil))
        with pytest.raises(UnreadableScan, match="the recipe is damaged"):
            read_image(tmp_path / "a.recipe")
    (tmp_path / "a.recipe").write_text(json.dumps(huge))
    with pytest.raises(UnreadableScan, match="claims a shape of 1000000 x 1000000 x 36"):
        read_image(tmp_path / "a.recipe")
