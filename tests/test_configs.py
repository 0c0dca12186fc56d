"""Every file of ``conf/`` is composed, and run in a tiny form where it can be."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from anomaly3d import train
from anomaly3d.arguments import COMMANDS, CONF
from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.fanogan import ModelConfig
from anomaly3d.system.instantiate import check_targets
from tests.conftest import TINY, counts, detector_config

ADDED = ("phase", "experiment", "hparams_search")  # groups that train.yaml does not list
FILES = sorted(str(path.relative_to(CONF).with_suffix("")) for path in Path(CONF).rglob("*.yaml"))
DETECTORS = [name.split("/")[1] for name in FILES if name.startswith("detector/")]
DRY = ["trainer.fast_dev_run=true", "logger=none"]


def chosen(name: str) -> list[str]:
    """Overrides that choose a file of a group."""
    group, _, choice = name.rpartition("/")
    if not group:
        return []
    overrides = [f"{'+' if group in ADDED else ''}{group}={choice}"]
    phase = "finetune" if group == "hparams_search" else "gan"
    return overrides if group == "phase" else [f"+phase={phase}", *overrides]


@pytest.mark.parametrize("name", FILES)
def test_it_composes_resolves_and_names_only_what_may_be_named(name):
    command = name if name in COMMANDS else "train"
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose(command, [*chosen(name), *(["site=x"] if name == "calibrate" else [])])
        check_targets(OmegaConf.to_container(config, resolve=True))


RUN = [name for name in FILES if name.split("/")[0] in ("phase", "detector", "model", "data", "callbacks")]


@pytest.mark.parametrize("name", RUN)
def test_it_trains_a_batch(name, tiny_run, places):
    """Phases, detectors, models, data and callbacks with one batch; ``test_ddp`` runs both trainers."""
    group, _, choice = name.rpartition("/")
    small = [o for o in TINY if not (group == "model" and o.startswith("model."))]
    if group == "phase" and choice not in detector_config("fanogan")["phases"]:
        with_it = [name for name in DETECTORS if choice in detector_config(name)["phases"]]
        choices = [f"+phase={choice}", f"detector={with_it[0]}"]
    elif group == "detector":
        choices = [f"detector={choice}", *(["+phase=gan"] if choice == "fanogan" else [])]
    else:
        choices = chosen(name)
    if group == "model":
        small += ["model.channels=4", "model.latent=16"]
    if choice == "supervised":
        small += [counts(train=4, validation=2, labelled_normal=2, labelled_lesion=2), "dataset.name=labelled"]
    assert train.main([*choices, f"run=config-{choice}", *places, *small, *DRY]) == 0


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("detector/")])
def test_a_detector_that_lists_its_networks_settings_lists_all(name):
    model = OmegaConf.to_container(OmegaConf.load(Path(CONF) / f"{name}.yaml")).get("module", {}).get("model")
    if isinstance(model, dict):
        assert set(model) == {field.name for field in fields(ModelConfig)}


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("dataset/phantom")])
def test_a_phantom_cohort_is_planned(name):
    """All scans of a cohort by name; making them is ``prepare``'s business and tested with few."""
    from anomaly3d.prepare import build_study

    with initialize_config_dir(CONF, version_base="1.3"):
        study = build_study(compose("prepare", [name.replace("/", "=", 1)]))
    config = OmegaConf.load(Path(CONF) / f"{name}.yaml")
    assert len(study.cohort.scans) == sum(config.counts.values()) + missing(config)


def missing(config):
    """Scans of parts that a cohort has from ``phantom`` and does not name itself."""
    base = OmegaConf.load(Path(CONF) / "dataset" / "phantom.yaml").counts
    return sum(count for part, count in base.items() if part not in config.counts)


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_losses_reach_other_loggers(logger, tiny_run, places):
    assert train.main(["+phase=gan", f"run=log-{logger}", f"logger={logger}", *places, *TINY]) == 0
    folder = Path(places[1].split("=")[1]) / f"log-{logger}" / "fanogan" / "gan" / "version_0"
    written = b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())
    for key in (b"gan/critic_loss", b"gan/health_sameness", b"split_hash"):
        assert key in written, key


def test_a_search_runs_each_value(tiny_run, places):
    """``hparams_search/kappa``: one encoder for each kappa, from the tiny run's GAN."""
    small = [o for o in TINY if not o.startswith("workers")]
    search = ["-m", "+phase=encoder", "+hparams_search=kappa", f"parent={tiny_run}/fanogan/gan"]
    assert train.main([*search, *places, *small, "logger=none", "detector.module.kappa=0.1,10.0"]) == 0
    runs = tiny_run.parent
    assert (runs / "kappa-0.1" / "fanogan" / "encoder" / "model.pt").exists()
    assert (runs / "kappa-10.0" / "fanogan" / "encoder" / "model.pt").exists()


def test_table_s2_names_its_runs_and_moves_what_each_names(tiny_run, places):
    """Two of its rows, in tiny form; the names say all that a row is."""
    small = [o for o in TINY if not o.startswith("workers")]
    search = ["-m", "+phase=finetune", "+hparams_search=table_s2", f"parent={tiny_run}/fanogan/encoder"]
    rows = ["phase.module.trained=[encoder],[generator,critic]", "phase.module.loss=feature"]
    assert train.main([*search, *rows, *places, *small, "logger=none"]) == 0
    before = load_detector(tiny_run / "fanogan" / "encoder" / "model.pt").state_dict()
    for name, moved in (("encoder", {"encoder"}), ("generator-critic", {"generator", "critic"})):
        after = load_detector(tiny_run.parent / f"s2-{name}-feature" / "fanogan" / "finetune" / "model.pt")
        changed = {key.split(".")[0] for key, value in after.state_dict().items() if (value != before[key]).any()}
        assert changed == moved


@pytest.mark.parametrize(("preset", "side"), [("fine96", 96), ("fine128", 128)])
def test_finer_volumes_train_a_step_of_each_phase(places, preset, side):
    """Two phantoms, networks of two channels; what comes out has the preset's side."""
    own = ("preprocessing.resolution", "preprocessing.working_spacing", "dataset.counts", "model.", "++phase.")
    small = [o for o in TINY if not o.startswith(own)] + ["model.channels=2", "model.latent=4", "++phase.batch=1"]
    steps = ["++phase.steps=1", "++phase.steps_per_epoch=1"]
    few = counts(train=1, validation=1)
    fine = [f"+experiment={preset}", f"run={preset}", few, *places, *small, *steps, "callbacks=none", "logger=none"]
    assert train.main(fine) == 0
    run = Path(places[1].split("=")[1]) / preset
    detector = load_detector(run / "fanogan" / "finetune" / "model.pt")
    assert detector.reconstruct(torch.zeros(1, 1, *(side,) * 3)).shape == (1, 1, *(side,) * 3)


def test_the_paper_trains_a_batch(tiny_run, places):
    small = [o for o in TINY if not o.startswith("++phase.batch")]
    paper = ["+phase=gan", "+experiment=simarro2020", "run=paper", *places, *small, *DRY, "++phase.batch=2"]
    assert train.main(paper) == 0
