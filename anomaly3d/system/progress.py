"""One way to show that work goes on: a live bar in a terminal, a line now and then in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")
LOG_EVERY = 15.0  # seconds between lines where no terminal shows a bar, ...
LOG_SHARE = 0.05  # ... and the same as a share of the time spent: long work needs fewer
LOG_WIDTH = 120  # columns where no terminal says how wide it is

console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)


def is_leader() -> bool:
    """Whether this is the first of the processes that train together; only that one speaks and writes."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))


def say(message: str) -> None:
    """One line for the user, on standard output, also while a bar is shown."""
    if not is_leader():
        return
    console.print(message, highlight=False, markup=False, soft_wrap=True)


class Rate(ProgressColumn):
    """How many a second, or how many seconds one takes."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


class Bar:
    """What is done, how many of ``total``, the rate and the time left.

    A live bar in a terminal; elsewhere a line now and then, and at the end.

    Args:
        done: how many were done before.
    """

    def __init__(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.total, self.first = what, total, done
        self.started = self.shown = time.monotonic()
        self.live: Progress | None = None
        if console.is_terminal and is_leader():
            columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), Rate())
            self.live = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)
            self.task = self.live.add_task(what, total=total, completed=done)
            self.live.start()

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self.live:
            self.live.stop()

    def left(self, done: int) -> str:
        """How long it has taken and how long it will."""
        spent = time.monotonic() - self.started
        rest = spent / max(done - self.first, 1) * (self.total - done)
        return f"{spent:.0f} s, {rest:.0f} s left"

    def show(self, done: int) -> None:
        """``done`` of ``total`` are done."""
        if self.live:
            self.live.update(self.task, completed=done)
            return
        now = time.monotonic()
        pause = max(LOG_EVERY, LOG_SHARE * (now - self.started))
        if now - self.shown > pause or done == self.total:
            say(f"{self.what}: {done}/{self.total}, {self.left(done)}")
            self.shown = now


def track(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield from ``items`` under a ``Bar``."""
    with closing(Bar(what, total)) as bar:
        for done, item in enumerate(items, start=1):
            yield item
            bar.show(done)
