"""Files of weights, written whole, and read so that nothing in them can run."""

import io
import pickle
from pathlib import Path
from typing import Any

import torch

from anomaly3d.errors import UserError
from anomaly3d.system.files import written_whole

DAMAGE = (pickle.UnpicklingError, EOFError, LookupError, RuntimeError, TypeError, AttributeError, ValueError, OSError)


def write_weights(path: Path, stored: dict[str, Any]) -> None:
    """Write tensors and plain values by ``torch.save``.

    By way of memory: of a full disk torch itself says no more than that a position is not the expected one.
    """
    made = io.BytesIO()
    torch.save(stored, made)
    with written_whole(path) as beside:
        beside.write_bytes(made.getbuffer())


def read_weights(path: Path, remedy: str) -> dict[str, Any]:
    """What ``torch.save`` wrote of tensors and plain values, mapped from the disk onto the CPU.

    Args:
        remedy: ends the sentence where the file is something else.

    Raises:
        UserError: it is damaged, or holds code.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except DAMAGE as error:
        raise not_weights(path, error, remedy) from error
    if not isinstance(stored, dict):
        raise not_weights(path, TypeError(type(stored).__name__), remedy)
    return stored


def not_weights(path: Path, error: Exception, remedy: str) -> UserError:
    """The sentence about a file that holds something else."""
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        cause = "what is not a weight could be code, and was not run"
    return UserError(f"{path} is damaged or not of this version: {remedy} ({cause})")
