"""Prepared volumes of a split as one array: in memory, or on disk and memory-mapped where memory would not do."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor

from anomaly3d.errors import UserError
from anomaly3d.scans.nifti import voxels
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say, track

READERS = 2  # threads: decompression runs outside of Python's lock
LARGE = 1e9  # bytes: the size of a larger split is announced before its memory is taken


def check_limit(limit_gb: Any) -> None:
    """Refuse what is no number of gigabytes.

    Raises:
        UserError: names the key.
    """
    if isinstance(limit_gb, bool) or not isinstance(limit_gb, int | float | None):
        raise UserError(f"memory_gb={limit_gb}: a number of gigabytes is wanted, or null")


def free_memory() -> int:
    """Bytes of main memory that are free; of all there are, where that is not known."""
    name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def fill(array: np.ndarray, paths: Sequence[str], what: str) -> None:
    """Read every file into its place of ``array (N, 1, D, H, W)``."""

    def place(number: int) -> None:
        array[number, 0] = voxels(paths[number]) if paths[number] else 0

    with ThreadPoolExecutor(READERS) as pool:
        done = pool.map(place, range(len(paths)))
        for _ in track(done, len(paths), what) if array.nbytes > LARGE else done:
            pass


def load_stack(
    paths: Sequence[str],
    cache: Path,
    limit_gb: float | None,
    what: str,
    dtype: type[np.generic] = np.float32,
    processes: int = 1,
) -> Tensor:
    """All volumes of a split, ``(N, 1, D, H, W)`` of ``dtype``.

    Args:
        paths: an empty one stands for zeros.
        cache: folder of memory-mapped arrays; an array is made once and used by all processes.
        limit_gb: a larger stack is memory-mapped; None: half of the free memory, shared by
            ``processes`` of this machine.
        what: names the volumes where their size is told.

    Raises:
        UserError: an array in ``cache`` is damaged.
    """
    if not any(paths):
        return torch.zeros(len(paths), 1, 1, 1, 1)
    shape = (len(paths), 1, *nib.nifti1.Nifti1Image.from_filename(next(filter(None, paths))).shape)
    size, limit = (
        np.dtype(dtype).itemsize * int(np.prod(shape)),
        free_memory() / 2 / processes if limit_gb is None else limit_gb * 1e9,
    )
    if size <= limit:
        if size > LARGE:
            say(f"{len(paths)} {what} volumes: {size / 1e9:.1f} GB of memory")
        array = np.empty(shape, dtype)
        fill(array, paths, f"reading {what} volumes")
        return torch.from_numpy(array)
    stats = [(path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns) if path else () for path in paths]
    file = cache / f"{hashlib.sha256(repr(stats).encode()).hexdigest()[:16]}.npy"
    say(f"{len(paths)} {what} volumes: {size / 1e9:.1f} GB are more than {limit / 1e9:.1f}, memory-mapped from {file}")
    if not file.exists():
        with written_whole(file) as beside:
            mapped = np.lib.format.open_memmap(beside, "w+", dtype, shape)
            fill(mapped, paths, f"reading {what} volumes")
            mapped.flush()
    try:
        mapped = np.lib.format.open_memmap(file, "c")  # copy on write: nothing is written back
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged or holds no numbers: remove it, and it is made again") from error
    if mapped.shape != shape or mapped.dtype != dtype:
        raise UserError(f"{file} holds other volumes: remove it, and it is made again")
    return torch.from_numpy(mapped)
