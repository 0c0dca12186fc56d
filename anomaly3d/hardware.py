"""Precision by the machine: ``trainer.precision=auto`` takes bfloat16 where the hardware multiplies in it."""

from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.errors import UserError
from anomaly3d.layers import DownsampleConv, UpsampleConv


def fast_bfloat16(accelerator: str) -> bool:
    """Whether bfloat16 is native on what Lightning will use."""
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def memory_format(device: torch.device) -> torch.memory_format:
    """Channels last on a GPU; a CPU reorders by itself, and GroupNorm's gradient is slow in channels last there."""
    return torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format


def has_batch_norm(model: DictConfig) -> bool:
    """Whether any network of ``conf/model`` depends on its batch."""
    return "batch" in (model.generator_norm, model.critic_norm, model.encoder_norm)


def trainer_options(config: DictConfig, batch_norm: bool = False) -> tuple[dict[str, Any], str]:
    """Arguments for ``lightning.Trainer`` and a line that says what was chosen.

    Raises:
        UserError: devices that do not exist; several processes with BatchNorm, whose statistics would differ.
    """
    options = OmegaConf.to_container(config, resolve=True)
    assert isinstance(options, dict)
    if options["precision"] == "auto":
        options["precision"] = "bf16-mixed" if fast_bfloat16(options["accelerator"]) else "32-true"
    on_gpu = torch.cuda.is_available() and options["accelerator"] != "cpu"
    devices = options["devices"]
    if on_gpu and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise UserError(f"trainer.devices={devices}, but this machine has {torch.cuda.device_count()} GPU(s)")
    if batch_norm and (devices != 1 or options["num_nodes"] != 1):
        raise UserError(
            "a model with BatchNorm trains on one process only, because its statistics would differ between processes: "
            "take model=paper, whose norms do not depend on the batch, or trainer=auto"
        )
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    layout = str(memory_format(torch.device("cuda" if on_gpu else "cpu"))).removeprefix("torch.")
    chosen = f"{where}, {options['precision']}, {layout}, {devices} process(es)"
    return {str(k): v for k, v in options.items()}, chosen


def recompute_activations(detector: FAnoGAN) -> None:
    """Keep only the inputs of the networks' convolutions; what lies between is computed again for gradients."""

    def wrap(layers: nn.Sequential) -> None:
        starts = [i for i, layer in enumerate(layers) if isinstance(layer, DownsampleConv | UpsampleConv)]
        groups = [layers[a:b] for a, b in pairwise([*starts, len(layers)])]

        def forward(x: Tensor) -> Tensor:
            for group in groups:
                x = checkpoint(group, x, use_reentrant=False)
            return x

        layers.forward = forward  # type: ignore[method-assign]

    for layers in (detector.generator.blocks, detector.critic.trunk.layers, detector.encoder.trunk.layers):
        wrap(layers)


def round_weights(detector: nn.Module, precision: str) -> None:
    """For a detector that only scores: round its matrices and kernels now, as mixed precision would in every batch."""
    if precision != "bf16-mixed":
        return
    for layer in detector.modules():
        if isinstance(layer, nn.Linear | nn.Conv3d | DownsampleConv | UpsampleConv):
            layer.weight.data = layer.weight.data.bfloat16()


def make_trainer(options: dict[str, Any], **more: Any) -> L.Trainer:
    """A Trainer without Lightning's own sampler, summary and sanity check.

    Raises:
        UserError: Lightning refuses the options.
    """
    try:
        return L.Trainer(
            **options, **more, use_distributed_sampler=False, enable_model_summary=False, num_sanity_val_steps=0
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"trainer config: {error}") from error
