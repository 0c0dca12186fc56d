"""Jobs on a Dask cluster: any SLURM, Kubernetes or SSH cluster whose workers see the same files and this program."""

import logging
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any

from anomaly3d.errors import UserError
from anomaly3d.system.workers import Lost, give_up

PATIENCE = 20  # seconds to wait for a scheduler
WINDOW = 4  # jobs a worker thread that are handed over ahead: the scheduler holds no more of a long list


def run_on_cluster(
    function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], scheduler: str | None, lost: Lost | None
) -> Generator[Any, None, None]:
    """Yield ``function(*job)`` for every job in the order they finish.

    A job whose worker dies goes to another one, up to three times.

    Raises:
        UserError: Dask is not installed, its scheduler does not answer, or a job is lost and ``lost`` is None.
    """
    os.environ.setdefault("DASK_LOGGING__DISTRIBUTED", "critical")  # also of workers that this process starts
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError as error:
        raise UserError("workers=dask needs Dask: pip install distributed") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        client = (
            Client(scheduler, timeout=PATIENCE) if scheduler else Client(threads_per_worker=1, dashboard_address=None)
        )
    except (OSError, ValueError, TimeoutError) as error:
        raise UserError(
            f"no Dask scheduler answers at scheduler={scheduler}: start one with 'dask scheduler'"
        ) from error
    with client:
        ahead = WINDOW * max(1, sum(client.nthreads().values()))
        waiting = iter(jobs)
        running: dict[Any, tuple[Any, ...]] = {}

        def submit() -> Any:
            for job in waiting:
                future = client.submit(in_folder, os.getcwd(), function, *job, pure=False)
                running[future] = job
                return future
            return None

        finished = as_completed([future for _ in range(min(ahead, len(jobs))) if (future := submit())])
        for future in finished:
            job = running.pop(future)
            if (another := submit()) is not None:
                finished.add(another)
            try:
                yield future.result()
            except KilledWorker:
                yield give_up(job, "it killed several workers, perhaps for memory", lost)
            except RuntimeError as error:
                if "deserialization" in str(error):
                    raise UserError("the workers of the cluster do not have this program: install it there") from error
                raise


def in_folder(folder: str, function: Callable[..., Any], *job: Any) -> Any:
    """A job in the folder that its relative paths are in."""
    os.chdir(folder)
    return function(*job)
