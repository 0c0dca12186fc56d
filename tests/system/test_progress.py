"""Progress as a user sees it: a bar in a terminal, few lines in a log."""

import io
from contextlib import closing

import pytest
from rich.console import Console

from anomaly3d.system import progress
from anomaly3d.system.progress import Bar, track


def shown(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=file, force_terminal=terminal, width=120))
    return file


def test_a_log_gets_the_last_line_and_one_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    file = shown(monkeypatch, terminal=False)
    clock = iter(range(0, 1000, 4))  # every look at the clock is four seconds later
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(track("abcdefg", 7, "scans")) == list("abcdefg")
    lines = file.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == ["scans: 4/7", "scans: 7/7"]
    assert "0 s left" in lines[-1]


def test_a_terminal_gets_a_bar_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    file = shown(monkeypatch, terminal=True)
    with closing(Bar("gan, steps", 60, done=20)) as bar:
        bar.show(30)
        bar.show(40)
        bar.live.refresh()  # type: ignore[union-attr]
        assert [(c.speed or 0) > 0 for c in bar.live.tasks] == [True]  # type: ignore[union-attr]
    text = file.getvalue()
    for part in ("gan, steps", "40/60", "/s"):
        assert part in text


def test_other_processes_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    file = shown(monkeypatch, terminal=True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert list(track(range(3), 3, "scans")) == [0, 1, 2]
    assert file.getvalue() == ""
