"""Precision by the machine: ``trainer.precision=auto`` takes bfloat16 where the hardware multiplies in it."""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from anomaly3d.errors import UserError


def fast_bfloat16(accelerator: str) -> bool:
    """Whether bfloat16 is native on what Lightning will use."""
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def trainer_options(config: DictConfig) -> tuple[dict[str, Any], str]:
    """Arguments for ``lightning.Trainer`` and a line that says what was chosen.

    Raises:
        UserError: devices that do not exist.
    """
    options = OmegaConf.to_container(config, resolve=True)
    assert isinstance(options, dict)
    if options["precision"] == "auto":
        options["precision"] = "bf16-mixed" if fast_bfloat16(options["accelerator"]) else "32-true"
    on_gpu = torch.cuda.is_available() and options["accelerator"] != "cpu"
    devices = options["devices"]
    if on_gpu and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}, but this machine has {torch.cuda.device_count()} GPU(s)")
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    chosen = f"{where}, {options['precision']}, channels last, {devices} process(es)"
    return {str(k): v for k, v in options.items()}, chosen
