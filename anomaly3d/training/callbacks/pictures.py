"""Pictures of volumes for Weights & Biases."""

from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torch.utils.data import default_collate

from anomaly3d.data.module import data_of
from anomaly3d.phases.base import Phase
from anomaly3d.runs.tracking import may_log
from anomaly3d.scans.nifti import spacing_of
from anomaly3d.scans.volume import mark_sides, side_by_side, three_planes


def middle_planes(volume: Tensor, spacing: np.ndarray) -> np.ndarray:
    """Axial, coronal and sagittal middle slices of ``(D, H, W)`` in [-1, 1], side by side, in [0, 255]; R and L mark
    the sides of the first. Of an axial slice ``(D, H)`` it alone."""
    array = volume.detach().float().cpu().numpy()
    first = three_planes(array if array.ndim == 3 else array[..., None], spacing)[0]
    planes = side_by_side(array, spacing) if array.ndim == 3 else first
    axial = first.shape[1]
    planes[:, :axial] = mark_sides(planes[:, :axial], 1.0)
    return ((planes.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


class LogPictures(L.Callback):
    """After each validation, what a phase makes of ``count`` validation scans; only where pictures may be logged."""

    def __init__(self, count: int = 3) -> None:
        self.count = count

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = trainer.logger
        data = data_of(trainer)
        if not trainer.is_global_zero or not isinstance(logger, WandbLogger):
            return
        if not may_log(logger, "images", data.synthetic):
            return
        assert isinstance(pl_module, Phase)
        healthy = data.dataset("validation")
        items = [healthy[i] for i in range(min(self.count, len(healthy)))]
        spacing = spacing_of(data.split("validation")["image"].iloc[0])
        batch: Any = move_data_to_device(default_collate(items), pl_module.device)
        for name, scans in pl_module.pictures(batch).items():
            images = [np.concatenate([middle_planes(volume, spacing) for volume in volumes]) for volumes in scans]
            logger.log_image(f"{pl_module.name}/{name}", images)
