"""Random numbers for a method that draws while it examines: a scan's findings may depend on no other scan."""

import hashlib

import torch
from torch import Tensor


def noise_of(x: Tensor, *shape: int) -> Tensor:
    """N(0, 1) for each of the volumes ``x (B, 1, D, H, W)``: ``(B, *shape)`` float32, decided by its voxels alone."""
    draws = []
    for volume in x.detach().float().cpu():
        seed = int.from_bytes(hashlib.sha256(volume.contiguous().numpy().tobytes()).digest()[:8], "little")
        draws.append(torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63)))
    return torch.stack(draws).to(x.device)
