"""Which texts are names of files, and files that are whole or not there."""

import errno
from pathlib import Path

import pytest

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
