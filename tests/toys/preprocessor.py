"""A modality as its author would write it: one class. No HU, no template, no registration."""

from pathlib import Path

import numpy as np

from anomaly3d.preprocessing.base import Companions, Prepared, Preprocessor
from anomaly3d.scans.readers import read_scan
from anomaly3d.scans.volume import Volume, resample


class Standardised(Preprocessor):
    """The whole scan in a box, in units of its own spread; ``reach`` of them are 1."""

    unit = "z"

    def __init__(self, resolution: int, reach: float, quality: dict) -> None:
        super().__init__(resolution, quality)
        self.reach = reach

    def read(self, path: Path) -> Volume:
        return read_scan(path)

    def prepare(self, scan: Volume, companions: Companions) -> Prepared:
        n = self.resolution
        factor = np.array(scan.data.shape) / n
        small = scan.affine @ np.diag([*factor, 1.0])
        small[:3, 3] += scan.affine[:3, :3] @ (factor / 2 - 0.5)
        data = resample(scan, small, (n, n, n))
        z = (data - data.mean()) / data.std()
        brain = (z > 0).astype(np.uint8)
        masks = {
            name: (resample(mask, small, (n, n, n)) > 0.5).astype(np.uint8) for name, mask in companions.masks.items()
        }
        image = np.clip(z / self.reach, -1, 1).astype(np.float32)
        return Prepared(image, brain, masks, small, np.eye(4), {"spread": float(scan.data.std())})

    def to_physical(self, x: np.ndarray) -> np.ndarray:
        return x * self.reach
