"""Changes of a training scan that MONAI has for whole volumes only."""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import MapTransform, RandomizableTransform


class RandIntensityInBraind(RandomizableTransform, MapTransform):
    """``image`` times ``1 +- scale`` plus ``+- shift``, within [-1, 1]; what lies around the brain stays as it is.

    Args:
        keys: of the volumes, ``(1, D, H, W)`` in [-1, 1]; ``mask_key`` that of the brain mask.
        shift: in units of [-1, 1]: 0.05 are 3 HU.
        prob: of a change.
    """

    def __init__(self, keys: Any, mask_key: str, shift: float, scale: float, prob: float = 0.5) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.mask_key, self.shift, self.scale = mask_key, shift, scale

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        changed = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return changed
        factor = 1 + self.R.uniform(-self.scale, self.scale)
        offset = self.R.uniform(-self.shift, self.shift)
        for key in self.key_iterator(changed):
            x = changed[key]
            changed[key] = torch.where(changed[self.mask_key] > 0, (x * factor + offset).clamp(-1, 1), x)
        return changed
