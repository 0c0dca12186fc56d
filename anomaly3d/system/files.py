"""Files that are either whole or not there."""

import hashlib
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from anomaly3d.errors import UserError
from anomaly3d.system.progress import say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())
OLD = 86400.0  # seconds after which nobody writes a file any more
OUTPUT = ".anomaly3d"  # marks a folder whose scans this program made
NO_NAME = re.compile(r'[/\\:*?"<>|\x00-\x1f\x7f]')  # in no name: what separates folders, or what Windows forbids
LONGEST = 150  # characters of a name: of 255 bytes that file systems allow, with room for suffixes
SYSTEM = ("@eaDir", "__MACOSX")  # folders that file servers and archives add


def is_name(text: str) -> bool:
    """Whether a text is the name of one file or folder on any system, and leads nowhere else."""
    return 0 < len(text.encode(errors="replace")) <= LONGEST and text[0] != "." and not NO_NAME.search(text)


def is_text(name: str) -> bool:
    """Whether all of a name could be read as letters; Python keeps the bytes of others as surrogates."""
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


def mark_output(folder: Path) -> None:
    """Mark a folder of results, so that a search of the folder around it passes it over."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTPUT).touch()


def visible(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """``root`` and the folders below it with their files, sorted.

    Links are followed; hidden files, what systems add, dangling links, and this program's own results are left out.
    """
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(root, followlinks=True):
        stat = os.stat(place)
        if (stat.st_dev, stat.st_ino) in seen or (OUTPUT in files and Path(place) != root):
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))  # a link may lead back
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in SYSTEM)
        yield Path(place), sorted(f for f in files if not f.startswith(".") and os.path.exists(os.path.join(place, f)))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a path beside the target; what was written there takes the target's name when the block ends well.

    The two share their suffixes, because libraries choose a format by them. A failed block leaves nothing; its
    error, of a full disk for example, names the target.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{os.getpid()}@{HOST}.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    except OSError as error:
        if str(error.filename) in ("None", str(beside)):  # a text or a Path
            error.filename = str(path)
        raise
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock for as long as the block runs; it goes with the process, however that ends.

    Where the block fails and has made nothing else, neither the lock's file nor folders made for it stay.

    Args:
        wait: for another process to end.

    Raises:
        UserError: another process holds it, and there is no waiting.
    """
    if fcntl is None:
        yield
        return
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise UserError(f"another process is at work on {what}: wait until it ends, or stop it") from error
            say(f"another process is at work on {what}: this one waits until it ends")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        except BaseException:
            if new:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # one that holds something
                    for folder in new:
                        folder.rmdir()
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of ``written_whole`` below a folder; living processes keep theirs.

    Of another machine's processes nothing is known; what they left goes when it is old.
    """
    for path in folder.rglob(".*@*.*"):
        writer, _, host = path.name.split(".")[1].partition("@")
        with suppress(FileNotFoundError):  # its writer has finished
            old = time.time() - path.stat().st_mtime > OLD
            if writer.isdigit() and (old if host != HOST else not alive(int(writer))):
                path.unlink()


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
