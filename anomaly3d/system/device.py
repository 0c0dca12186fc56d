"""What the machine multiplies fast: precision and memory layout."""

import torch


def fast_bfloat16(accelerator: str) -> bool:
    """Whether bfloat16 is the faster choice on what Lightning will use.

    On a processor that multiplies in it, yes. Not on a GPU: there torch's convolutions multiply float32 in TF32, and a
    step of ours took 1.4 to 1.6 times as long in bfloat16 on an H200 (experiments/gpu).
    """
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def memory_format(device: torch.device, axes: int = 5) -> torch.memory_format:
    """Of a weight with so many axes: for convolutions channels last on a GPU; a CPU reorders by itself, and GroupNorm's
    gradient is slow in channels last there."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d} if device.type == "cuda" else {}
    return layouts.get(axes, torch.contiguous_format)
