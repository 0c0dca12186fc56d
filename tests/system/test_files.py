"""Which texts are names of files, and files that are whole or not there."""

import errno
import threading
import time
from pathlib import Path

import pytest

from anomaly3d.errors import UserError
from anomaly3d.system.files import is_name, locked, written_whole


@pytest.mark.parametrize("text", ["demo", "2024", "kappa-0.1", "a b", "Müller", "-x", "_", "a" * 150])
def test_names(text):
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "C:x", "a\0b", "a\nb", ".hidden", ".1.x", "a" * 151, "é" * 80],
)
def test_what_leads_elsewhere_or_is_no_name(text):
    assert not is_name(text)


def fill_up(path, named):
    with written_whole(path) as beside:
        beside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device", named and named(beside))


@pytest.mark.parametrize("named", [None, str, Path])  # by what writes, and by what opens, the file beside it
def test_an_error_of_a_disk_names_the_file_that_was_to_be_written(tmp_path, named):
    with pytest.raises(OSError, match="No space") as found:
        fill_up(tmp_path / "a.csv", named)
    assert found.value.filename == str(tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_who_may_wait_for_a_lock_gets_it_next(tmp_path, capsys):
    lock, order = tmp_path / ".lock", []

    def work(name: str, seconds: float) -> None:
        with locked(lock, "the scores", wait=True):
            order.append(f"{name} begins")
            time.sleep(seconds)
            order.append(f"{name} ends")

    first = threading.Thread(target=work, args=("first", 0.5))
    first.start()
    while not order:
        time.sleep(0.01)
    with pytest.raises(UserError, match="another process is at work on the scores"), locked(lock, "the scores"):
        pass
    work("second", 0)
    first.join()
    assert order == ["first begins", "first ends", "second begins", "second ends"]
    assert "at work on the scores: this one waits until it ends" in capsys.readouterr().out


def test_a_lock_whose_work_failed_leaves_nothing_behind(tmp_path):
    """But what else was made, and what was there before."""
    lock = tmp_path / "runs" / "a" / ".lock"

    def fail(makes: str | None) -> None:
        with locked(lock, "it"):
            assert lock.exists()
            if makes:
                (lock.parent / makes).touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail(None)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(KeyError):
        fail("kept")
    assert [path.name for path in lock.parent.iterdir()] == ["kept"]
    with locked(lock, "it"):
        pass
    assert lock.exists()
