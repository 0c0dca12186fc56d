"""Files that are either whole or not there."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CHUNK = 1 << 20


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside the target; what was written there takes the target's name when the block ends well.

    The two share their suffixes, because libraries choose a format by them. A failed block leaves nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of ``written_whole`` below a folder; living processes keep theirs."""
    for path in folder.rglob(".*.*"):
        writer = path.name.split(".")[1]
        if writer.isdigit() and not alive(int(writer)):
            path.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
