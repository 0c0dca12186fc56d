"""One way to show that work goes on: a live bar in a terminal, a line now and then in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
LOG_EVERY = 15.0  # seconds between lines where no terminal shows a bar

LOG_WIDTH = 120  # columns where no terminal says how wide it is

console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)


def is_leader() -> bool:
    """Whether this is the first of the processes that train together; only that one speaks and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def say(message: str) -> None:
    """One line for the user, on standard output, also while a bar is shown."""
    if not is_leader():
        return
    console.print(message, highlight=False, markup=False, soft_wrap=True)


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield from ``items`` while showing how many of ``total`` are done and the time left."""
    if sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
            yield from progress.track(items, total=total, description=what)
        return
    started = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown > LOG_EVERY or done == total:
            left = (now - started) / done * (total - done)
            say(f"{what}: {done}/{total}, {now - started:.0f} s, {left:.0f} s left")
            shown = now
