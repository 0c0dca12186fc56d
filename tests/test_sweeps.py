"""Multiruns as a user types them: grids, searches by Optuna, jobs of submitit, what an agent of W&B calls."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from anomaly3d import train
from anomaly3d.arguments import completed
from anomaly3d.cli import Command, Done, command
from anomaly3d.errors import UserError
from tests.conftest import TINY, refused

QUICK = [o for o in TINY if not o.startswith("workers")]


@pytest.fixture
def trained(monkeypatch):
    """Runs, phases and kappas of the jobs of ``sweep``, which train nothing; its number is the distance to kappa 2."""
    jobs = []

    def task(config):
        jobs.append((str(config.run), config.phase.get("name"), float(config.detector.module.kappa)))
        return Done(value=abs(config.detector.module.kappa - 2.0))

    task.jobs = jobs
    return task


def sweep(task, *arguments):
    """The exit code of ``anomaly3d.train -m`` with another task."""
    return command("train")(task)(["-m", *arguments])


@pytest.mark.parametrize(
    ("varied", "remedy"),
    [
        (["seed=1,2"], "run=x-${seed}"),
        (["model=compact,paper"], "run=x-${hydra:runtime.choices.model}"),
        (["+phase=gan", "++phase.batch=2,4"], "run=x-${phase.batch}"),
    ],
)
def test_jobs_of_one_folder_are_refused_before_the_first_begins(trained, places, capsys, varied, remedy):
    assert sweep(trained, "run=x", *varied, places[1]) == 2
    assert trained.jobs == []
    refused(capsys, "two jobs of this sweep would train into", f"'{remedy}'")
    assert sweep(trained, *varied, places[1], remedy) == 0
    assert len({run for run, *_ in trained.jobs}) == len(trained.jobs) == 2


def test_phases_and_detectors_of_one_run_are_folders_of_their_own(trained, places):
    assert sweep(trained, "run=x", "+phase=gan,encoder", places[1]) == 0
    assert sweep(trained, "run=x", "detector=fanogan,alpha_fanogan", places[1]) == 0
    assert len(trained.jobs) == 4


def test_parameters_of_a_file_stand_below_what_is_typed(trained, places):
    kappas = ["+phase=encoder", "+hparams_search=kappa", places[1]]
    assert sweep(trained, *kappas, "hydra.sweeper.max_batch_size=2") == 0
    assert [kappa for *_, kappa in trained.jobs] == [0.1, 0.3, 1.0, 3.0, 10.0]
    assert sweep(trained, *kappas, "detector.module.kappa=7") == 0
    assert trained.jobs[5:] == [("kappa-7", "encoder", 7.0)]


@pytest.mark.parametrize(("values", "told"), [("tag(log,interval(0,10))", "log=True"), ("interval(10,1)", "10")])
def test_values_that_optuna_cannot_draw_from_are_named(trained, tmp_path, capsys, values, told):
    pytest.importorskip("optuna")
    space = f"detector.module.kappa={values}"
    assert sweep(trained, "hydra/sweeper=optuna", "run=search", space, f"runs_dir={tmp_path}") == 2
    refused(capsys, "Optuna cannot draw from the values of detector.module.kappa=", told)


def test_a_search_finds_what_is_best_and_the_same_command_goes_on(trained, tmp_path, capsys):
    """One trial fails and counts as failed; one is interrupted, and goes on first."""
    pytest.importorskip("optuna")
    space = "detector.module.kappa=tag(log,interval(0.1,10))"
    words = ["hydra/sweeper=optuna", "run=search", space, f"runs_dir={tmp_path}", "optimized_metric=encoder/val_loss"]

    def disturbed(config):
        done = trained(config)
        if config.run == "search-1":
            raise UserError("this one cannot be")
        if config.run == "search-3":
            raise KeyboardInterrupt
        return done

    assert sweep(disturbed, *words, "hydra.sweeper.trials=6") == 130
    assert [run for run, *_ in trained.jobs] == ["search-0", "search-1", "search-2", "search-3"]
    assert sweep(trained, *words, "hydra.sweeper.trials=6") == 0
    assert trained.jobs[3] == trained.jobs[4]  # it goes on with the same values
    runs, _, kappas = zip(*trained.jobs[4:], strict=True)
    assert runs == tuple(f"search-{number}" for number in range(3, 6))
    assert len(set(kappas)) == len(kappas)
    table = pd.read_csv(tmp_path / "search.csv")
    assert list(table["state"]) == ["COMPLETE", "FAIL", *["COMPLETE"] * 4]
    best = table.loc[table["value"].idxmin()]
    assert f"run=search-{best['number']}, " in " ".join(capsys.readouterr().out.split())
    assert sweep(trained, *words, "seed=3") == 2
    refused(capsys, "search.log holds a search with other values of seed")
    assert sweep(trained, *words, "hydra.sweeper.trials=7") == 0
    assert [run for run, *_ in trained.jobs[7:]] == ["search-6"]


def test_the_search_of_the_docs_is_one(trained, tiny_run, places, tmp_path, capsys):
    """Its trials take over what the parent's run was trained with, and nothing of the run that is usual."""
    pytest.importorskip("optuna")
    shutil.copytree(tiny_run, tmp_path / "demo", ignore=shutil.ignore_patterns("wandb", "evaluation", "*.ckpt"))
    words = yaml.safe_load((file := tmp_path / "demo" / "fanogan" / "finetune" / "overrides.yaml").read_text())
    file.write_text(yaml.safe_dump([*words, "seed=99"]))
    search = ["+phase=encoder", "+hparams_search=optuna", f"parent={tiny_run}/fanogan/gan", f"runs_dir={tmp_path}"]
    assert sweep(trained, *search, "hydra.sweeper.trials=3") == 0
    assert [run for run, *_ in trained.jobs] == ["search-0", "search-1", "search-2"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"run {tiny_run.name} goes on with" in said
    assert "seed=99" not in said
    assert list(pd.read_csv(tmp_path / "search.csv")["state"]) == ["COMPLETE"] * 3
    assert sweep(trained, *search, "optimized_metric=encoder/val_loss", "hydra.sweeper.trials=4") == 2
    refused(capsys, "encoder/val_loss is better where it is lower: add hydra.sweeper.direction=minimize")


def test_what_a_run_remembers_does_not_part_options_from_the_words_after_them():
    known = completed("train", ["-m", "--config-dir", "mine", "+phase=encoder", "run=a", "-q"])
    assert known[:3] == ["-m", "--config-dir", "mine"]


def test_failed_trials_are_listed(tmp_path, capsys):
    optuna = pytest.importorskip("optuna")

    def task(config):
        if config.seed > 1:
            raise UserError(f"no seed {config.seed}")
        return Done(value=float("nan") if config.seed else 1.0)

    words = ["hydra/sweeper=optuna", "seed=choice(0,1,2)", f"runs_dir={tmp_path}", "run=few"]
    assert sweep(task, *words, "hydra.sweeper.trials=5", "hydra.sweeper.together=2") == 2
    told = capsys.readouterr().err
    table = pd.read_csv(tmp_path / "few.csv")
    failed = table["params_seed"] > 1
    assert 0 < failed.sum() < 5
    assert list(table["state"] == "FAIL") == list(table["params_seed"] > 0)  # also one whose number is none
    assert f"{failed.sum()} of 5 jobs failed" in told
    assert [f"run=few-{number}" in told for number in range(5)] == list(failed)
    assert optuna.__version__ >= "4"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=1"], "a search takes keys to search"),
        (["run=a,b"], "one name"),
        (["seed=1,2", "hydra.sweeper.direction=up"], "direction=up"),
        (["seed=1,2", "optimized_metric=fit/val_pseudo_auc"], "hydra.sweeper.direction=maximize"),
        (["seed=1,2", "+phase=encoder", "++phase.monitor=encoder/val_pseudo_auc"], "hydra.sweeper.direction=maximize"),
        (["seed=1,2", "trainer=ddp"], "trainer.devices=1"),
        (["sed=1,2"], "did you mean seed"),
        (["seed=1,2", "run=../x"], "must be a plain name"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_any_trial(trained, tmp_path, capsys, words, told):
    pytest.importorskip("optuna")
    assert sweep(trained, "hydra/sweeper=optuna", f"runs_dir={tmp_path}", *words) == 2
    refused(capsys, told)
    assert trained.jobs == []
    assert list(tmp_path.rglob("*.log")) == []


def test_a_search_without_a_number_is_refused_after_one_trial(tmp_path, capsys):
    pytest.importorskip("optuna")
    words = ["hydra/sweeper=optuna", "seed=1,2", f"runs_dir={tmp_path}"]
    assert sweep(lambda config: Done(), *words) == 2
    refused(capsys, "demo-0 gives no number", "optimized_metric=")


def test_spaces_are_read_as_they_are_written():
    distributions = pytest.importorskip("optuna").distributions
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from anomaly3d.sweeps import distribution

    def of(text):
        return distribution(OverridesParser.create().parse_override(f"a={text}"))

    assert of("interval(0,1)") == distributions.FloatDistribution(0, 1)
    assert of("tag(log,interval(1e-5,1e-3))") == distributions.FloatDistribution(1e-5, 1e-3, log=True)
    assert of("tag(log,int(interval(4,64)))") == distributions.IntDistribution(4, 64, log=True)
    assert of("range(2,9,3)") == distributions.IntDistribution(2, 8, step=3)
    assert of("range(0,1,0.25)") == distributions.FloatDistribution(0, 0.75, step=0.25)
    assert of("compact,paper") == distributions.CategoricalDistribution(["compact", "paper"])
    assert of("choice([1,2],x)") == distributions.CategoricalDistribution(["[1,2]", "x"])


def test_a_finished_trial_gives_its_number_again(tiny_run, places, capsys):
    """Where a search was interrupted between the end of a training and the line about it."""
    pytest.importorskip("optuna")
    words = ["-m", "hydra/sweeper=optuna", "run=again", "detector.fit.optimizer.lr=1e-4,1e-3"]
    words += ["hydra.sweeper.trials=1", "detector=autoencoder", *places, *QUICK, "logger=none"]
    assert train.main(words) == 0
    table, runs = tiny_run.parent / "again.csv", tiny_run.parent
    before = pd.read_csv(table)["value"][0]
    numbers = json.loads((runs / "again-0" / "autoencoder" / "fit" / "lineage.json").read_text())["numbers"]
    assert before == pytest.approx(numbers["fit/val_loss"])
    (runs / ".search" / "again.log").unlink()
    capsys.readouterr()
    assert train.main(words) == 0
    assert "has finished it" in capsys.readouterr().out
    assert pd.read_csv(table)["value"][0] == before


@pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason="pip install 'anomaly3d[slurm]'")
def test_jobs_of_submitit_train_and_one_that_fails_is_listed_here(tiny_run, places, tmp_path):
    """Processes of their own, as on SLURM: the second may not have such a name."""
    words = ["run=submitted,.bad", "detector=mean_volume", *places, *QUICK, "logger=none"]
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", f"hydra.sweep.dir={tmp_path}/sweep"]
    place = f"hydra.launcher.submitit_folder={tmp_path}/jobs"
    call = [sys.executable, "-m", "anomaly3d.train", "-m", *words, *launcher, place]
    done = subprocess.run(call, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "error: run='.bad' must be a plain name" in done.stderr
    assert "1 of 2 jobs failed" in done.stderr
    assert "run=.bad" in done.stderr.splitlines()[-1]
    assert (tiny_run.parent / "submitted" / "mean_volume" / "fit" / "model.pt").exists()
    assert not list(tmp_path.rglob("%j"))


def test_slurm_jobs_leave_no_folder_without_a_name():
    """``%j`` in the folder's name makes one of that very name."""
    text = (Path(__file__).parents[1] / "conf" / "hydra" / "launcher" / "slurm.yaml").read_text()
    assert "%" not in yaml.safe_load(text)["submitit_folder"]


def test_what_an_agent_of_wandb_calls_trains(tiny_run, places, monkeypatch):
    """``docs/wandb_sweep.yaml``, filled in by W&B's own functions; the W&B run is the agent's."""
    sweep = yaml.safe_load((Path(__file__).parents[1] / "docs" / "wandb_sweep.yaml").read_text())
    chosen = {"detector.module.kappa": {"value": 0.7}, "seed": {"value": sweep["parameters"]["seed"]["values"][1]}}
    assert chosen.keys() == sweep["parameters"].keys()
    filled = create_sweep_command_args({"args": chosen})
    filled |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [sweep["program"]]}
    words = []
    for word in create_sweep_command(sweep["command"]):
        macro = word.startswith("${") and word.endswith("}")
        words += filled[word[2:-1]] if macro else [word]
    assert words[:4] == ["/usr/bin/env", "python", "-m", "anomaly3d.train"]
    words = [word for word in words[4:] if not word.startswith("parent=")]
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    wandb.teardown()  # it reads the environment once a process
    assert train.main([*words, f"parent={tiny_run}/fanogan/gan", *places, *QUICK]) == 0
    wandb.teardown()
    lineage = json.loads((tiny_run.parent / "wandb-abc123" / "fanogan" / "encoder" / "lineage.json").read_text())
    assert lineage["wandb"] == "abc123"
    assert (lineage["settings"]["seed"], lineage["settings"]["detector"]["module"]["kappa"]) == (1, 0.7)
    assert sweep["metric"]["name"] in lineage["numbers"]


def test_a_failed_job_of_a_sweep_is_listed_and_does_not_stop_the_others(places, capsys):
    small = [*places, *TINY, "logger=none", "trainer.fast_dev_run=true"]
    assert train.main(["-m", "+phase=gan", *small, "run=sweep-${phase.batch}", "++phase.batch=0,2"]) == 2
    told = capsys.readouterr()
    assert "nothing is kept" in told.out  # the second job, after the first
    refused_line, count, listed = told.err.splitlines()[-3:]
    assert refused_line.startswith("error: phase.batch=0: ")
    assert count == "1 of 2 jobs failed, for the reasons above:"
    assert "++phase.batch=0" in listed
    assert "run=sweep-" in listed

    assert train.main(["-m", "+phase=gan,encoder", *small, "run=chain", "++phase.batch=0,2"]) == 2
    told = capsys.readouterr()
    assert "nothing is kept" not in told.out  # what comes after a failed phase may build on it
    assert told.err.count("an earlier job of run=chain failed") == 3
    assert "4 of 4 jobs failed" in told.err

    def fails(config):
        raise ZeroDivisionError(config.seed)

    broken = command("train")(fails)
    assert (
        broken(["-m", "seed=4,5", "run=sweep-${seed}", *small]) == 1
    )  # an error of ours: shown, and the next job begins
    told = capsys.readouterr().err
    assert [f"ZeroDivisionError: {seed}" in told for seed in (4, 5)] == [True, True]
    assert "2 of 2 jobs failed" in told
    with pytest.raises(ZeroDivisionError):
        broken(["seed=4", *small])


def test_a_sweep_gets_the_number_it_optimises(places, monkeypatch):
    values = []
    monkeypatch.setattr(Command, "job", lambda self, config, job=Command.job: values.append(job(self, config)))
    dry = ["run=sweep", *places, *TINY, "logger=none", "+phase=gan", "optimized_metric=gan/val_wasserstein"]
    assert train.main([*dry, "optimized_metric=gan/val_loss"]) == 2
    assert train.main([*dry, "overwrite=true"]) == 0
    history = json.loads((Path(places[1].split("=")[1]) / "sweep/fanogan/gan/health.json").read_text())
    assert history["history"]
    value = json.loads((Path(places[1].split("=")[1]) / "sweep/fanogan/gan/lineage.json").read_text())["numbers"]
    assert float(values[-1]) == values[-1].value == value["gan/val_wasserstein"]
