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


def resolve_trainer(config: Mapping[str, Any]) -> dict[str, Any]:
    """``conf/trainer`` with its precision decided.

    Raises:
        UserError: devices that do not exist, or several processes that would not train together.
    """
    options = {str(k): v for k, v in config.items()}
    if several_processes(options) and options["strategy"] in ("auto", "ddp"):
        raise UserError(
            f"trainer.devices={options['devices']} trainer.num_nodes={options['num_nodes']} takes trainer=ddp, whose "
            "strategy allows for the GAN's two optimizers"
        )
    started = os.environ.get("WORLD_SIZE", "1")
    if not several_processes(options) and started not in ("", "1"):
        raise UserError(
            f"torchrun has started {started} processes, each of which would train alone into the same folder: add "
            "trainer=ddp trainer.devices=NUMBER, with trainer.num_nodes=NUMBER on several machines"
        )
    if options["precision"] == "auto":
        options["precision"] = "bf16-mixed" if fast_bfloat16(options["accelerator"]) else "32-true"
    devices = options["devices"]
    if on_gpu(options) and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}, but this machine has {torch.cuda.device_count()} GPU(s)")
    return options


def on_gpu(options: Mapping[str, Any]) -> bool:
    """Whether a trainer of these options works on a GPU."""
    return torch.cuda.is_available() and options["accelerator"] != "cpu"


def several_processes(options: Mapping[str, Any]) -> bool:
    """Whether a trainer of these options works in more than one process."""
    return options["devices"] != 1 or options["num_nodes"] != 1


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
