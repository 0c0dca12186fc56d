"""What a config may name, and what becomes of one that names something else."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from anomaly3d.cli import CONF
from anomaly3d.cohorts.base import Cohort
from anomaly3d.detectors.base import load_detector
from anomaly3d.errors import UserError
from anomaly3d.system.instantiate import allow, build, located, parameters, targets
from tests.malice import Payload, foreign

ADAM = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.1}


@pytest.fixture(autouse=True)
def no_plugins():
    yield
    allow([])


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "torch.hub.load", "anomaly3dx.Evil", "monai.bundle.run"]
)
def test_a_config_cannot_call_what_it_likes(target):
    for config in ({"_target_": target}, {**ADAM, "betas": [{"_target_": target}]}):
        with pytest.raises(UserError, match=target):
            build(config, "test config")


def test_a_model_file_cannot_either(tmp_path):
    torch.save(
        {"config": {"_target_": "os.system", "command": f"touch {tmp_path}/ran"}, "state": {}}, tmp_path / "m.pt"
    )
    with pytest.raises(UserError, match=r"os\.system"):
        load_detector(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("what", foreign(Path("mark")))
def test_no_foreign_config_runs(tmp_path, what):
    config = foreign(tmp_path / "ran")[what]
    target = [*targets(config)][-1]
    for each in (config, {"_target_": "monai.transforms.Compose", "transforms": [config]}):
        with pytest.raises(UserError, match=re.escape(target)):
            build(each, "test config")
    assert not (tmp_path / "ran").exists()
    assert parameters(target) == set()  # asked for every key that is added: a module would run when it is imported


def test_texts_stay_texts(tmp_path):
    """Hydra would resolve them into a config, after the check."""
    text = f"${{oc.create:'{{_target_: os.system, command: touch {tmp_path}/ran}}'}}"
    made = build({"_target_": "monai.transforms.ToDeviced", "keys": text, "device": "cpu"}, "x")
    assert made.keys == (text,)
    assert not (tmp_path / "ran").exists()


def test_a_class_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"dataset config: .*Adam is no Cohort"):
        build(ADAM, "dataset config", Cohort)


def test_every_target_that_we_ship_may_be_named():
    paths = [path for path in Path(CONF).rglob("*.yaml") if "hydra" not in path.parts]
    texts = [path.read_text() for path in paths]
    named = {
        t for text in texts for t in re.findall(r"_target_: (?!hydra_plugins)([\w.]+)", text)
    }  # Hydra builds those
    assert len(named) > 20
    for target in named:
        assert inspect.isclass(located(target)), target


def test_a_pickle_in_a_model_file_does_not_run(tmp_path):
    torch.save({"config": {}, "state": Payload(tmp_path / "ran")}, tmp_path / "m.pt")
    with pytest.raises(UserError, match="damaged"):
        load_detector(tmp_path / "m.pt")
    assert not (tmp_path / "ran").exists()


def test_a_package_of_ones_own_is_allowed_by_name():
    config = {"_target_": "tests.toys.detector.Blur", "factor": 2}
    with pytest.raises(UserError, match="plugins"):
        build(config, "detector config")
    allow(["tests.toys"])
    assert build(config, "detector config").factor == 2


def test_wrong_arguments_are_a_sentence():
    with pytest.raises(UserError, match=r"detector config: .*floor"):
        build({"_target_": "anomaly3d.detectors.controls.ZScore"}, "detector config")
    with pytest.raises(UserError, match="rate"):
        build({"_target_": "anomaly3d.detectors.controls.ZScore", "floor": 1, "rate": 3}, "detector config")
    with pytest.raises(UserError, match="no_such"):
        build({"_target_": "anomaly3d.no_such.Thing"}, "detector config")


def test_objects_are_handed_on_as_they_are():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = build(ADAM, "optimizer")([parameter])
    assert optimizer.param_groups[0]["params"][0] is parameter


def test_nested_configs_are_built_or_handed_on():
    nested = {"_target_": "monai.transforms.Compose", "transforms": [{"_target_": "monai.transforms.Identity"}]}
    assert type(build(nested, "x").transforms[0]).__name__ == "Identity"
    assert build(nested, "x", recursive=False).transforms[0] == {"_target_": "monai.transforms.Identity"}


def test_the_keys_a_class_takes_are_known():
    assert {"lr", "weight_decay"} <= parameters("torch.optim.Adam")
    assert parameters("no.such.thing") == set()


def test_a_config_without_a_class_is_a_sentence():
    """What ``++phase.module.optimizer.lr=1`` leaves of an optimizer that is named elsewhere."""
    with pytest.raises(UserError, match=r"phase\.module\.optimizer does not say of which class it is.*\(there is lr\)"):
        build({"lr": 1}, "phase.module.optimizer")
