"""What the machine multiplies fast: precision and memory layout."""

import torch


def fast_bfloat16(accelerator: str) -> bool:
    """Whether bfloat16 is native on what Lightning will use."""
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU; a CPU reorders by itself, and GroupNorm's gradient is slow in channels last there."""
    return torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format
