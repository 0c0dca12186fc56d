"""A function over many jobs in parallel processes, here or on a cluster, with progress, results as they come."""

import errno
import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor, as_completed
from concurrent.futures import TimeoutError as TooLong
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

from pebble import ProcessExpired, ProcessPool

from anomaly3d.errors import UserError
from anomaly3d.system.memory import keep_freed_memory
from anomaly3d.system.progress import track

TRIES = 2  # of a job whose worker dies: it may have been another's fault, for example of a machine's memory
DISKS = {
    errno.ENOSPC: ("is full", "free some space"),
    errno.EDQUOT: ("is full", "free some space"),
    errno.EROFS: ("is read-only", "make it writable"),
}
Lost = Callable[[tuple[Any, ...], str], Any]


@dataclass(frozen=True)
class Cluster:
    """Dask's scheduler at an address like ``tcp://node:8786``; None: one of this machine, started for the job."""

    scheduler: str | None


Workers = int | Cluster


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(workers: int | str | None, scheduler: str | None = None) -> Workers:
    """``workers`` and ``scheduler`` of the config; None: a process for each core that this one may use.

    Raises:
        UserError: neither a whole number of processes nor ``dask``.
    """
    if workers == "dask":
        return Cluster(scheduler)
    if scheduler:
        raise UserError(f"scheduler={scheduler} is for workers=dask")
    if workers is None:
        return cores()
    if not isinstance(workers, int) or workers < 1:
        raise UserError(f"workers must be a whole number of processes or dask, not {workers!r}")
    return workers


def disk_error(error: OSError) -> UserError | OSError:
    """A disk that takes no more as the user's sentence; other errors as they are."""
    if error.errno not in DISKS:
        return error
    what, remedy = DISKS[error.errno]
    return UserError(
        f"the disk {what} while writing {error.filename or 'output'}: {remedy}, or choose another place "
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
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: Workers,
    what: str,
    lost: Lost | None = None,
    longest: float | None = None,
) -> Iterator[Any]:
    """Yield ``function(*job)`` for every job in the order they finish; one worker is this process.

    Workers are fresh processes (spawn), because forking after torch has started threads can hang.

    Args:
        lost: gives the result of a job that takes its workers down (for example for memory) or takes longer than
            ``longest`` seconds, from the job and the reason in words; None: that ends everything.

    Raises:
        UserError: the disk is full, no worker lives, no cluster answers, or a job is lost and ``lost`` is None.
    """
    if isinstance(workers, Cluster):
        from anomaly3d.system.dask import run_on_cluster

        results = run_on_cluster(function, jobs, workers.scheduler, lost)
    elif workers <= 1 or len(jobs) <= 1:
        results = (function(*job) for job in jobs)
    else:
        results = run_in_pool(function, jobs, min(workers, len(jobs)), lost, longest)
    try:
        with closing(results):
            yield from track(results, len(jobs), what)
    except OSError as error:
        raise disk_error(error) from error
    except BrokenExecutor as error:
        raise UserError(
            f"{what}: every worker process was killed before it began, perhaps for memory; fewer workers=... "
            "need less; run the same command again; finished files are kept"
        ) from error


def run_in_threads(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], workers: Workers, what: str
) -> Iterator[Any]:
    """As ``run_parallel``, in threads of this process and in the order of the jobs.

    For short work on arrays: it starts at once, jobs share what they read, and numpy and scipy let threads run side by
    side. On a cluster, all cores of this machine.
    """
    with ThreadPoolExecutor(workers if isinstance(workers, int) else cores()) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            yield from track((future.result() for future in futures), len(jobs), what)
        finally:
            pool.shutdown(cancel_futures=True)


def run_in_pool(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int,
    lost: Lost | None,
    longest: float | None,
) -> Generator[Any, None, None]:
    """``run_parallel`` in processes of this machine; a worker that dies costs its own job only."""
    todo = list(jobs)
    with ProcessPool(workers, initializer=begin_worker, context=get_context("spawn")) as pool:
        try:
            for last in (*[False] * (TRIES - 1), True):
                futures: dict[Future[Any], tuple[Any, ...]] = {
                    pool.schedule(function, args=job, timeout=longest): job for job in todo
                }
                todo = []
                for future in as_completed(futures):
                    try:
                        yield future.result()
                    except ProcessExpired:
                        if last:
                            yield give_up(futures[future], "its worker was killed twice, perhaps for memory", lost)
                        else:
                            todo.append(futures[future])
                    except TooLong:
                        yield give_up(futures[future], f"it took longer than {longest:.0f} s", lost)
        except BaseException:
            pool.stop()
            pool.join()
            raise


def give_up(job: tuple[Any, ...], reason: str, lost: Lost | None) -> Any:
    """The result of a job that has none.

    Raises:
        UserError: nobody knows one.
    """
    if lost is None:
        raise UserError(f"work on {job[0]} ended: {reason}; fewer workers=... need less memory")
    return lost(job, reason)
