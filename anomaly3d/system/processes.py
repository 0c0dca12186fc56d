"""The processes that train together."""

import torch


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)
