"""A function over many jobs in parallel processes, with progress, results as they come."""

import errno
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from anomaly3d.errors import UserError
from anomaly3d.system.memory import keep_freed_memory
from anomaly3d.system.progress import track


def worker_count(workers: int | None) -> int:
    """``workers`` of the config, or one a core that this process may use.

    Raises:
        UserError: not a whole number of processes.
    """
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers must be a whole number of processes, not {workers!r}")
    return workers


def disk_error(error: OSError) -> UserError | OSError:
    """A full disk as the user's sentence; other errors as they are."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    return UserError(
        f"the disk is full while writing {error.filename or 'output'}: free some space, or choose another place "
        "with data_dir=... or runs_dir=..., and run the same command again; finished files are kept"
    )


def begin_worker() -> None:
    """Ctrl-C is the parent's business, a worker ends its scan; but it does not outlive a parent that was killed."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    Thread(target=follow, daemon=True).start()


def run_parallel(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: int, what: str
) -> Iterator[Any]:
    """Yield ``function(*job)`` for every job in the order they finish; ``workers <= 1`` stays in this process.

    Workers are fresh processes (spawn), because forking after torch has started threads can hang.

    Raises:
        UserError: the disk is full.
    """
    try:
        if workers <= 1 or len(jobs) <= 1:
            yield from track((function(*job) for job in jobs), len(jobs), what)
            return
        with ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=get_context("spawn"),
            initializer=begin_worker,
        ) as pool:
            futures = [pool.submit(function, *job) for job in jobs]
            try:
                yield from track((f.result() for f in as_completed(futures)), len(jobs), what)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except OSError as error:
        raise disk_error(error) from error
