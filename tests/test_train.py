"""``anomaly3d.train`` as a user types it, on one tiny run that all tests share."""

import json
import os
import shlex
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

import anomaly3d
from anomaly3d import evaluate, train
from anomaly3d.detectors.base import load_detector
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.fit import FitPhase
from anomaly3d.phases.gan import GANPhase
from anomaly3d.system.files import locked, sha256
from tests.conftest import TINY, counts, refused


def test_critic_is_the_same_in_all_phases_and_generator_only_until_finetuning(tiny_run):
    def weights(phase, network):
        state = torch.load(tiny_run / "fanogan" / phase / "model.pt", weights_only=True)["state"]
        return {k: v for k, v in state.items() if k.startswith(network)}

    def same(a, b):
        return all(torch.equal(v, b[k]) for k, v in a.items())

    assert same(weights("gan", "critic"), weights("finetune", "critic"))
    assert same(weights("gan", "generator"), weights("encoder", "generator"))
    assert not same(weights("gan", "generator"), weights("finetune", "generator"))
    assert not same(weights("gan", "encoder"), weights("encoder", "encoder"))


def test_a_finished_phase_is_left_alone(tiny_run, places, capsys):
    before = (tiny_run / "fanogan" / "gan" / "model.pt").stat().st_mtime_ns
    assert train.main(["+phase=gan", "run=tiny", *places, *TINY]) == 0
    assert "overwrite=true" in capsys.readouterr().out
    assert train.main(["+phase=gan", "run=tiny", *places, *TINY, "seed=5"]) == 2
    refused(capsys, "seed", "overwrite=true")
    assert (tiny_run / "fanogan" / "gan" / "model.pt").stat().st_mtime_ns == before


def test_test_scans_do_not_reach_training(tiny_run, places, tmp_path):
    """Phases 2 and 3 without any test row give the very weights and the very choice of checkpoint."""
    raw = next((tiny_run.parents[1] / "data" / "raw").glob("phantom-*/manifest.csv"))
    table = pd.read_csv(raw, dtype=str, keep_default_na=False)
    for column in ("image", "lesion_mask", "mass_effect_mask"):
        table[column] = [str(raw.parent / p) if p else "" for p in table[column]]
    digests = []
    for name, rows in (("with", table), ("without", table[table["split"] != "test"])):
        rows.to_csv(tmp_path / f"{name}.csv", index=False)
        arguments = ["dataset=manifest", f"dataset.manifest={tmp_path}/{name}.csv", f"data_dir={tmp_path}/{name}"]
        tiny = [o for o in TINY if not o.startswith("dataset.")]
        arguments += [*tiny, f"runs_dir={tmp_path}/{name}", "logger=none", "trainer.precision=32-true"]
        assert train.main(["-m", "+phase=gan,encoder,finetune", *arguments]) == 0
        digests.append(
            [sha256(tmp_path / name / "demo" / "fanogan" / p / "model.pt") for p in ("gan", "encoder", "finetune")]
        )
    assert digests[0] == digests[1]


def next_command(out: str) -> list[str]:
    """The words of the command that a training names as the next."""
    (line,) = [text for text in out.splitlines() if "next:" in text]
    return shlex.split(line.split("next: ")[1])


def test_a_run_remembers_what_was_typed_and_names_the_next_command(tiny_run, places, capsys):
    """The next phase takes over data and networks, but another phase's optimizer; then another detector."""
    typed = [*places, *TINY, "logger=none", "++phase.module.optimizer.lr=1e-3"]
    assert train.main(["+phase=gan", "run=next", *typed]) == 0
    words = next_command(capsys.readouterr().out)
    assert words == ["python", "-m", "anomaly3d.train", "+phase=encoder", "run=next", places[1], "workers=1"]
    assert train.main([*words[3:], "++phase.steps=2"]) == 0
    folder = tiny_run.parent / "next" / "fanogan" / "encoder"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["model"]["latent"], config["data_dir"], config["phase"]["batch"]) == (16, places[0][9:], 2)
    assert config["phase"]["steps"] == 2
    assert config["phase"]["module"]["optimizer"]["lr"] == 2e-4
    assert train.main(["+phase=gan", *words[4:]]) == 0  # its own settings again: it is finished
    assert "has finished it" in capsys.readouterr().out
    assert train.main(["detector=mean_volume", *words[4:]]) == 0
    words = next_command(capsys.readouterr().out)
    assert words == ["python", "-m", "anomaly3d.evaluate", "run=next", places[1]]
    lineages = [json.loads(path.read_text()) for path in (tiny_run.parent / "next").glob("*/*/lineage.json")]
    assert len({lineage["split_hash"] for lineage in lineages}) == 1
    assert train.main(["+phase=finetune", "run=next", places[1], "model.latent=20"]) == 2
    refused(capsys, "model.latent")


def test_a_missing_parent_is_named_before_any_work(places, tmp_path, capsys):
    assert train.main(["+phase=encoder", f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]) == 2
    refused(capsys, "+phase=gan", "demo")
    assert not (tmp_path / "data").exists()


def test_a_retrained_parent_makes_its_children_stale(tiny_run, places, tmp_path, capsys):
    run = tiny_run.parent / "stale"
    shutil.copytree(tiny_run, run)
    arguments = ["run=stale", *places, *TINY, "logger=none"]
    assert train.main(["+phase=gan", *arguments, "overwrite=true", "seed=3"]) == 0
    capsys.readouterr()
    assert train.main(["+phase=encoder", *arguments]) == 2
    refused(capsys, "overwrite=true")


def test_a_parent_of_another_model_is_refused(tiny_run, places, capsys):
    arguments = ["+phase=encoder", "run=other", f"parent={tiny_run}/fanogan/gan", *places, *TINY, "model.latent=20"]
    assert train.main(arguments) == 2
    refused(capsys, "model.latent")


def test_a_checkpoint_is_not_kept_for_being_the_worst(tiny_run, places, capsys):
    arguments = ["+phase=encoder", "run=tiny", *places, *TINY, "++phase.monitor=encoder/val_pseudo_auc"]
    assert train.main(arguments) == 2
    refused(capsys, "phase.mode=min", "mode max")


def test_the_numbers_of_a_run_are_those_of_the_state_it_keeps(tiny_run, places):
    """Not of its last validation, which at this rate is a worse one."""
    arguments = ["+phase=encoder", "run=kept", f"parent={tiny_run}/fanogan/gan", *places, *TINY, "logger=none"]
    sizes = ["++phase.steps=4", "++phase.steps_per_epoch=1", "++phase.module.optimizer.lr=0.02"]
    assert train.main([*arguments, *sizes]) == 0
    folder = tiny_run.parent / "kept" / "fanogan" / "encoder"
    table = pd.read_csv(folder / "training.csv")
    best = table["val_loss"].argmin()
    assert table["val_loss"].iloc[-1] > table["val_loss"][best] * 1.01
    numbers = json.loads((folder / "lineage.json").read_text())["numbers"]
    for name in ("val_loss", "val_image", "val_feature"):
        assert numbers[f"encoder/{name}"] == pytest.approx(table[name][best], rel=1e-4)


def test_phases_and_detectors_that_do_not_belong_together_are_refused(places, capsys):
    assert train.main(["+phase=fit", "run=wrong", *places]) == 2
    refused(capsys, "fanogan", "gan, encoder, finetune")
    assert train.main(["+phase=gan", "detector=pca", "run=wrong", *places]) == 2
    refused(capsys, "pca", "fit")


def test_a_detector_takes_a_finished_gan_as_it_is(tiny_run, places, capsys):
    """``phase.steps=0`` with a parent: the latent search needs no training of its own, and is what scores."""
    small = [o for o in TINY if not o.startswith("++phase.steps=")]
    taken = ["detector=anogan", "detector.module.steps=2", "run=taken", "+phase=gan", "++phase.steps=0"]
    assert train.main([*taken, *places, *small]) == 2
    refused(capsys, "phase.steps=0", "parent=...")
    parent = tiny_run / "fanogan" / "gan" / "model.pt"
    assert train.main([*taken, f"parent={parent.parent}", *places, *small, "logger=none"]) == 0
    run = tiny_run.parent / "taken"
    before, after = (
        torch.load(path, weights_only=True)["state"] for path in (parent, run / "anogan" / "gan" / "model.pt")
    )
    before = {key: value for key, value in before.items() if not key.startswith("contrast.")}
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    scorer = anomaly3d.Scorer.from_run(run, data_dir=places[0].split("=")[1])
    found = scorer.examine(torch.rand(2, 32, 32, 32))
    assert scorer.module.detector.title == "3D AnoGAN"
    assert (found.scores["total"] > 0).all()
    assert train.main([*taken, f"parent={parent.parent}", *places, *small]) == 0
    assert "has finished it" in capsys.readouterr().out


def test_a_method_that_computes_gradients_is_watched_while_it_trains(tiny_run, places):
    """Validation and the pictures of W&B come from a trainer out of inference mode."""
    assert train.main(["detector=gmvae", "detector.module.steps=2", "run=restored", *places, *TINY]) == 0
    run = tiny_run.parent / "restored"
    assert list((run / "wandb").rglob("reconstructions*.png"))
    health = pd.read_csv(run / "gmvae" / "fit" / "training.csv")
    assert {"error", "kl_z", "kl_w", "kl_c", "val_loss", "val_pseudo_auc"} <= set(health.columns)
    found = anomaly3d.Scorer.from_run(run, data_dir=places[0].split("=")[1]).examine(torch.rand(32, 32, 32))
    assert (found.scores["total"] > 0).all()


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("callbacks=ema", "learns at once, in whole or in part: leave out callbacks=ema"),
        ("detector.module.counts=[64]", "and none of detector.module.counts=[64] is fewer"),
    ],
)
def test_what_a_method_that_learns_at_once_cannot_do_is_a_sentence(tiny_run, places, capsys, typed, told):
    assert train.main(["detector=pca", "run=at-once", typed, "logger=none", *places, *TINY]) == 2
    refused(capsys, told)


def test_the_supervised_control_is_fitted_to_labelled_scans(places):
    cohort = counts(train=3, validation=1, test_normal=1, test_lesion=1, labelled_normal=2, labelled_lesion=2)
    small = [cohort, *(o for o in TINY if "counts" not in o and "model" not in o), "dataset.name=labelled"]
    assert train.main(["detector=supervised", "run=upper", *places, *small]) == 0
    assert evaluate.main(["detector=supervised", "run=upper", *places, "logger=none"]) == 0
    metrics = json.loads((Path(places[1].split("=")[1]) / "upper/evaluation/metrics.json").read_text())
    assert metrics["focus"] == "supervised"
    assert set(metrics["results"]["other"]) >= {"pca", "mirror"}
    assert metrics["localization"] == {}  # it has no map


def test_a_dry_run_finishes_nothing(places, capsys):
    """``fast_dev_run`` goes through every phase with a batch each and leaves no folder."""
    assert train.main(["run=dry", *places, *TINY, "trainer.fast_dev_run=true"]) == 0
    assert capsys.readouterr().out.count("nothing is kept") == 3
    assert not (Path(places[1].split("=")[1]) / "dry").exists()


def test_a_phase_is_read_from_its_checkpoint(tiny_run):
    """Hyper-parameters are in the checkpoint, so the module needs nothing else."""
    for name, module in (("gan", GANPhase), ("finetune", FinetunePhase), ("fit", FitPhase)):
        folder = tiny_run / ("pca" if name == "fit" else "fanogan") / name
        phase = module.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
        state, stored = phase.detector.state_dict(), load_detector(folder / "model.pt").state_dict()
        assert all(torch.equal(value, state[key]) for key, value in stored.items()) or name == "finetune"
        assert state.keys() == stored.keys()
    assert phase.detector.components.shape[0] >= 1
    assert module.load_from_checkpoint(folder / "checkpoints" / "last.ckpt").hparams["detector"]["counts"]


def test_what_was_typed_and_composed_is_kept(tiny_run):
    folder = tiny_run / "fanogan" / "encoder"
    assert "model.latent=16" in yaml.safe_load((folder / "overrides.yaml").read_text())
    assert yaml.safe_load((folder / "config.yaml").read_text())["phase"]["steps"] == 4
    lineage = json.loads((folder / "lineage.json").read_text())
    assert lineage["version"] == anomaly3d.__version__
    assert lineage["made_with"]["torch"] == torch.__version__
    assert lineage["made_with"]["hardware"].startswith(("CPU", "NVIDIA"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("++phases.gan.steps_per_epoch=7", "1200"),
        ("phases.gan.steps_per_epoch=7", "1200"),
        ("phase.steps_per_epoch=7", "1200"),
        ("phases.gan.stps=7", "unknown key phase.stps: did you mean"),
    ],
)
def test_an_experiment_of_other_phases_leaves_a_phase_to_be_set(places, typed, said, capsys):
    """1200 is no multiple of 7; the experiment has keys of encoder and finetune alone."""
    assert train.main(["+experiment=demo", typed, *places]) == 2
    refused(capsys, said)


@pytest.mark.parametrize("first", ["+phase=gan", "+experiment=simarro2020"])
def test_phase_and_experiment_in_either_order_are_the_same(places, first, capsys):
    """The experiment's step count wins over the phase's whatever is typed first: 50,000 is no multiple of 7."""
    second = {"+phase=gan": "+experiment=simarro2020", "+experiment=simarro2020": "+phase=gan"}[first]
    assert train.main([first, second, "run=order", *places, "++phase.steps_per_epoch=7"]) == 2
    refused(capsys, "phase.steps (50000)")


def test_a_parent_is_of_one_phase(tiny_run, places, capsys):
    """Each phase of the command would begin with it, and none with the one before."""
    words = ["run=of-one", f"parent={tiny_run}/fanogan/gan", *places, *TINY, "logger=none"]
    assert train.main(words) == 2
    refused(capsys, "parent=... is what one phase begins with", "+phase=encoder")


def test_an_ensemble_of_other_members_is_remembered(tiny_run, places, capsys):
    """As docs/methods.md has it; every later command of the run reads what was typed."""
    members = ["+detector@detector.module.members.masked=masked", "~detector@detector.module.members.pca"]
    words = ["detector=ensemble", *members, "detector.module.combined=[exceedance, masked_exceedance]", "run=members"]
    few = [word for word in TINY if "model." not in word]
    assert train.main([*words, *places, *few, "logger=none"]) == 0
    capsys.readouterr()
    assert train.main(["run=members", *places, "logger=none"]) == 0
    assert "ensemble: run members has finished it" in capsys.readouterr().out


def test_schedules_averages_and_early_ends_by_config(tiny_run, places):
    """Read off what they do: the last learning rate, weights that are not those of the last step, fewer steps."""
    schedule = "++phase.module.scheduler={_target_: torch.optim.lr_scheduler.LinearLR, _partial_: true, total_iters: 8}"
    common = [*places, *TINY, "logger=none", "trainer.precision=32-true"]
    adam = "{_target_: torch.optim.Adam, _partial_: true, lr: 3e-5}"
    of_generator = f"++phase.module.generator_optimizer={adam}"
    assert train.main(["+phase=gan", "run=extras", *common, schedule, of_generator, "callbacks=ema"]) == 0
    folder = tiny_run.parent / "extras" / "fanogan" / "gan"
    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    rates = [state["param_groups"][0]["lr"] for state in last["optimizer_states"]]
    assert rates == pytest.approx([2e-4 * 2 / 3, 3e-5 * 2 / 3])  # from a third, half of the way
    assert train.main(["+phase=gan", "run=plain", *common, schedule, of_generator]) == 0
    weights = [
        load_detector(tiny_run.parent / run / "fanogan" / "gan" / "model.pt").critic.head.weight
        for run in ("extras", "plain")
    ]
    assert 0 < (weights[0] - weights[1]).abs().max() < 4 * 2e-4  # the average stays behind, by at most all steps
    early = ["callbacks=early_stopping", "callbacks.stop.patience=1", "callbacks.stop.min_delta=100", "++phase.steps=8"]
    assert train.main(["run=extras", *common, schedule, *early[:-1], "+phase=encoder", early[-1]]) == 0
    assert len(pd.read_csv(folder.parent / "encoder" / "training.csv")) == 2  # of four


def test_an_unknown_number_to_stop_by_is_refused_with_those_that_there_are(tiny_run, places, capsys):
    words = ["run=stop", f"parent={tiny_run}/fanogan/gan", "+phase=encoder", *places, *TINY, "logger=none"]
    assert train.main([*words, "callbacks=early_stopping", "callbacks.stop.monitor=val_loss"]) == 2
    refused(capsys, "callbacks.stop.monitor=val_loss: this phase has", "encoder/val_loss")
    assert train.main([*words, "callbacks=early_stopping"]) == 0


def test_the_layer_of_the_feature_distance_is_a_key(tiny_run, places, capsys):
    common = ["run=layer", f"parent={tiny_run}/fanogan/gan", "+phase=encoder", *places, *TINY, "logger=none"]
    assert train.main([*common, "detector.module.feature_layer=4"]) == 2
    refused(capsys, "detector.module.feature_layer must be null or 1 to 3, not 4")
    assert train.main([*common, "detector.module.feature_layer=1"]) == 0
    detector = load_detector(tiny_run.parent / "layer" / "fanogan" / "encoder" / "model.pt")
    x = torch.rand(2, 1, 32, 32, 32) * 2 - 1
    layers, x_ = detector.critic.trunk.layers, detector.reconstruct(x)
    expected = (layers[1](layers[0](x)) - layers[1](layers[0](x_))).square().mean((1, 2, 3, 4))
    assert torch.allclose(detector.distances(x, x_)["feature"], expected)


@pytest.mark.skipif(os.name != "posix", reason="locks of other systems differ")
def test_two_jobs_do_not_train_one_phase_at_once(tiny_run, places, capsys):
    with locked(tiny_run.parent / "busy" / "fanogan" / ".gan.lock", "it"):
        assert train.main(["+phase=gan", "run=busy", *places, *TINY]) == 2
        refused(capsys, "another process is at work on", "busy/fanogan/gan")
        assert train.main(["+phase=gan", "run=tiny", *places, *TINY]) == 0
