"""Lightning's Trainer from ``conf/trainer``; ``precision=auto`` takes bfloat16 where that is faster."""

import atexit
import os
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from anomaly3d.errors import UserError
from anomaly3d.system.device import fast_bfloat16, memory_format
from anomaly3d.system.instantiate import build

STEPS = "a phase is as long as phase.steps says, with a validation after each phase.steps_per_epoch"
ENDED = f"{STEPS}; ended by Ctrl-C or SIGTERM it goes on when the same command is called again"
LENGTHS = (
    *("max_epochs", "max_steps", "min_epochs", "min_steps", "limit_train_batches", "limit_val_batches"),
    *("check_val_every_n_epoch", "val_check_interval", "overfit_batches"),
)
OWN = (
    *("enable_progress_bar", "enable_model_summary", "num_sanity_val_steps", "use_distributed_sampler"),
    *("inference_mode", "log_every_n_steps", "plugins"),
)
ELSEWHERE = {  # arguments of Lightning's Trainer that would act beside the settings of a phase, or be ignored
    **dict.fromkeys(LENGTHS, STEPS),
    **dict.fromkeys(OWN, "the program needs its own"),
    **dict.fromkeys(("limit_predict_batches", "limit_test_batches"), "a score is one of all scans"),
    "max_time": ENDED,
    "accumulate_grad_batches": "a step learns from phase.batch volumes a process; gradient_checkpointing=true and "
    "trainer=ddp save memory",
    "callbacks": "callbacks=... has them",
    "logger": "logger=... has them",
    "default_root_dir": "runs_dir=... says where results are",
}


def resolve_trainer(config: Mapping[str, Any]) -> dict[str, Any]:
    """``conf/trainer`` with its precision decided.

    Raises:
        UserError: devices that do not exist, several processes that would not train together, or an argument that is
            said elsewhere.
    """
    options = {str(k): v for k, v in config.items()}
    for key in options:
        if key in ELSEWHERE:
            raise UserError(f"trainer.{key} cannot be set: {ELSEWHERE[key]}")
    if several_processes(options) and options["strategy"] in ("auto", "ddp"):
        raise UserError(
            f"trainer.devices={options['devices']} trainer.num_nodes={options['num_nodes']} takes trainer=ddp, whose "
            "strategy allows for the GAN's two optimizers"
        )
    for starter, variable in (("torchrun", "WORLD_SIZE"), ("srun", "SLURM_STEP_NUM_TASKS")):
        started = os.environ.get(variable, "1")
        if not several_processes(options) and started not in ("", "1"):
            raise UserError(
                f"{starter} has started {started} processes, each of which would train alone into the same folder: add "
                "trainer=ddp trainer.devices=NUMBER, with trainer.num_nodes=NUMBER on several machines"
            )
    if options["precision"] == "auto":
        options["precision"] = "bf16-mixed" if fast_bfloat16(options["accelerator"]) else "32-true"
    devices = options["devices"]
    if on_gpu(options) and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}, but this machine has {torch.cuda.device_count()} GPU(s)")
    return options


def started_together() -> bool:
    """Whether torchrun or srun has started this process and others beside it, not Lightning."""
    srun = os.environ.get("SLURM_STEP_NUM_TASKS", "1") not in ("", "1")
    return srun or ("TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1")


def on_gpu(options: Mapping[str, Any]) -> bool:
    """Whether a trainer of these options works on a GPU."""
    return torch.cuda.is_available() and options["accelerator"] != "cpu"


def several_processes(options: Mapping[str, Any]) -> bool:
    """Whether a trainer of these options works in more than one process."""
    devices = options["devices"]
    alone = devices == 1 or (isinstance(devices, list) and len(devices) == 1)  # [1] is the second GPU
    return not alone or options["num_nodes"] != 1


def describe_trainer(options: Mapping[str, Any], processes: int) -> str:
    """Where and how a trainer of these options works, in a line.

    Args:
        processes: on all machines.
    """
    cuda = on_gpu(options)
    threads = torch.get_num_threads()
    where = torch.cuda.get_device_name() if cuda else f"CPU, {threads} thread{'s' * (threads != 1)}"
    layout = str(memory_format(torch.device("cuda" if cuda else "cpu"))).removeprefix("torch.")
    return f"{where}, {options['precision']}, {layout}, {processes} process{'es' * (processes != 1)}"


def close_process_group() -> None:
    """End what processes talk over; Lightning does so for NCCL only, and gloo aborts those that end with it open."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_trainer(options: Mapping[str, Any], **more: Any) -> L.Trainer:
    """A Trainer without Lightning's own sampler, bar, summary and sanity check.

    Raises:
        UserError: Lightning refuses the options.
    """
    ours = {
        "use_distributed_sampler": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    if several_processes(options):
        atexit.register(close_process_group)
    try:
        return build(options, "trainer config", L.Trainer, **{**ours, **more})
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer config: {error}") from error
