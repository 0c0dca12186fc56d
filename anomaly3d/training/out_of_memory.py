"""Where memory does not do: which batch would, found by trying."""

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from anomaly3d.errors import UserError
from anomaly3d.system.memory import ran_out, release_memory
from anomaly3d.system.progress import say
from anomaly3d.system.trainer import resolve_trainer, several_processes
from anomaly3d.training.job import Job

T = TypeVar("T")
TRIAL = 5  # steps at most: a generator may have its first in the fifth
LESS_MEMORY = "gradient_checkpointing=true, a smaller model or preprocessing.resolution, or memory_gb=0 take less"


def with_advice(train: Callable[[Job], T], job: Job) -> T:
    """``train(job)``; where memory does not do, the sentence says which batch would fit.

    Raises:
        UserError: memory ran out, or as ``train``.
    """
    try:
        return train(job)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        cause = str(error).splitlines()[0]
    size = job.phase["batch"]  # only here is what the failed step held free: its traceback is gone
    if several_processes(resolve_trainer(job.config["trainer"])):
        advice = f"try phase.batch={size // 2}" if size > 1 else LESS_MEMORY
    elif fits := batch_that_fits(train, job):
        anew = " with overwrite=true" if job.folder.learned() else ""
        advice = f"phase.batch={fits}{anew} fits, as a try of it has shown"
    else:
        advice = f"not even phase.batch=1 fits: {LESS_MEMORY}"
    raise UserError(f"out of memory with phase.batch={size}: {advice} ({cause})")


def batch_that_fits(train: Callable[[Job], object], job: Job) -> int | None:
    """The largest of half the batch, a quarter ... of which a few steps go through on this machine; None for none."""
    size = job.phase["batch"]
    while size := size // 2:
        release_memory()
        torch.cuda.empty_cache()  # without a GPU nothing
        say(f"out of memory: trying phase.batch={size}")
        tried = {
            "phase": {**job.phase, "batch": size},
            "trainer": {**job.config["trainer"], "fast_dev_run": TRIAL},
            "callbacks": {},
        }
        try:
            train(replace(job, config={**job.config, **tried}))
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
        else:
            return int(size)
    return None
