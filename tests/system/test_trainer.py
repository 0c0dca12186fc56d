"""What of ``conf/trainer`` is decided or refused before a Trainer is built."""

import subprocess
import sys

import pytest
import yaml

from anomaly3d.cli import CONF
from anomaly3d.errors import UserError
from anomaly3d.system.trainer import resolve_trainer, several_processes, started_together


@pytest.fixture
def auto():
    with open(f"{CONF}/trainer/auto.yaml") as file:
        return yaml.safe_load(file)


@pytest.mark.parametrize("more", [{"devices": 2}, {"num_nodes": 2}, {"devices": 2, "strategy": "ddp"}])
def test_several_processes_take_the_strategy_of_two_optimizers(auto, more):
    with pytest.raises(UserError, match="takes trainer=ddp"):
        resolve_trainer({**auto, **more})


def test_processes_of_torchrun_do_not_train_alone(auto, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="torchrun has started 2 processes"):
        resolve_trainer(auto)
    together = {**auto, "devices": 2, "strategy": "ddp_find_unused_parameters_true"}
    assert resolve_trainer(together)["devices"] == 2
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert resolve_trainer(auto)["precision"] in ("bf16-mixed", "32-true")


def test_tasks_of_srun_do_not_train_alone(auto, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match=r"srun has started 2 processes.*trainer=ddp"):
        resolve_trainer(auto)
    assert resolve_trainer({**auto, "devices": 2, "strategy": "ddp_find_unused_parameters_true"})["devices"] == 2


def test_a_list_of_one_gpu_is_one_process(auto):
    assert not several_processes({**auto, "devices": [1]})
    assert several_processes({**auto, "devices": [0, 1]})
    assert several_processes({**auto, "devices": [1], "num_nodes": 2})


def test_processes_that_others_have_started_are_known(monkeypatch):
    """Lightning says in the environment how many there are, too."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not started_together()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert started_together()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert started_together()


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("max_epochs", "phase.steps"),
        ("max_time", "goes on when the same command is called again"),
        ("limit_val_batches", "phase.steps_per_epoch"),
        ("accumulate_grad_batches", "phase.batch"),
        ("log_every_n_steps", "needs its own"),
        ("limit_predict_batches", "all scans"),
    ],
)
def test_what_is_said_elsewhere_is_refused(auto, key, told):
    """Lightning would end a phase early, which then counted as finished, or the program's own would be taken."""
    with pytest.raises(UserError, match=rf"trainer.{key} cannot be set: .*{told}"):
        resolve_trainer({**auto, key: 1})
    assert resolve_trainer({**auto, "benchmark": True})["benchmark"]


@pytest.mark.parametrize("processor", [True, False])
def test_bfloat16_is_for_processors_that_multiply_in_it(auto, monkeypatch, processor):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: processor)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert resolve_trainer(auto)["precision"] == ("bf16-mixed" if processor else "32-true")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert resolve_trainer(auto)["precision"] == "32-true"
    assert resolve_trainer({**auto, "precision": "bf16-mixed"})["precision"] == "bf16-mixed"


def test_processes_that_talked_end_well():
    """A process that ends while gloo's threads run is aborted now and then: the group is closed before."""
    code = (
        "import atexit, torch, yaml\nfrom anomaly3d.system.trainer import make_trainer\n"
        "atexit.register(lambda: print(torch.distributed.is_initialized()))\n"  # runs after what is registered later
        f"options = yaml.safe_load(open({CONF + '/trainer/auto.yaml'!r}))\n"
        "options.update(devices=2, strategy='ddp', accelerator='cpu', precision='32-true')\n"
        "make_trainer(options, logger=False, enable_checkpointing=False)\n"
        "torch.distributed.init_process_group('gloo', init_method='tcp://127.0.0.1:0', rank=0, world_size=1)\n"
        "print(torch.distributed.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", "False"], done.stdout + done.stderr
