"""Who the scans of a batch show, as numbers for networks."""

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch

MIDDLE, SPREAD = 50.0, 25.0  # years that become 0 and 1


def people(batch: Batch) -> Tensor:
    """``(B, 4)`` of a batch with ``age`` and ``sex``: age in units of 25 years from 50, 0 where it is unknown; 1 where
    it is known; 1 where female; 1 where male."""
    age = batch["age"]
    there = age.isfinite()
    sexes = [torch.tensor([sex == name for sex in batch["sex"]], device=age.device) for name in ("F", "M")]
    scaled = torch.where(there, (age - MIDDLE) / SPREAD, 0.0)
    return torch.stack([scaled, *(column.to(scaled) for column in (there, *sexes))], 1)
