"""Freed memory stays with the process, until a job of a multirun has ended."""

import ctypes
import gc
import sys
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt in glibc's malloc.h
NEVER, LARGEST = 2**31 - 1, 2**30  # bytes


def keep_freed_memory() -> None:
    """Tell glibc not to give freed memory back to the kernel, block by block up to 1 GB.

    By default each large tensor or array is mapped anew, and its pages, cleared by the kernel, fault in one by one: 8 %
    of a training step, 15 % of a prepared scan. Other systems' allocators do not ask.
    """
    if mallopt := glibc("mallopt"):
        mallopt(MMAP_THRESHOLD, LARGEST)
        mallopt(TRIM_THRESHOLD, NEVER)


def release_memory() -> None:
    """Free what an earlier job of this process left behind, and give it back to the kernel.

    Lightning's trainer and module refer to each other, so networks and optimizers of a finished phase (4 GB of
    ``model=paper``) wait for the garbage collector, which counts objects and not bytes.
    """
    gc.collect()
    if trim := glibc("malloc_trim"):
        trim(0)


def ran_out(error: Exception) -> bool:
    """Whether memory did: of the processor's and the GPU's torch says so in words."""
    words = ("can't allocate memory", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))


def glibc(function: str) -> Any:
    """A function of glibc, None where another allocator is used."""
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
