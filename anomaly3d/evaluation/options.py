"""How an evaluation is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from anomaly3d.data.store import check_limit
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.scoring.calibration import check_batch, check_rate, check_volume
from anomaly3d.system.workers import Workers

DENSEST_TISSUE = 70.0  # HU: what is denser may be left out, not all that is darker


@dataclass(frozen=True)
class Options:
    """``conf/evaluate``."""

    batch: int
    score: str | None
    false_positive_rate: float
    voxel_false_alarm_ml: float
    trainer: Mapping[str, Any]
    workers: Workers
    by_age: bool = False
    densest_hu: float | None = None
    memory_gb: float | None = None

    def densest(self, preprocessor: Preprocessor) -> float | None:
        """``densest_hu`` as a prepared volume has it, in [-1, 1]; None where that is cut off, or the unit is not HU."""
        if self.densest_hu is None or preprocessor.unit != "HU":
            return None
        value = float((self.densest_hu - preprocessor.to_physical(np.array(0.0))) / preprocessor.per_unit)
        return value if value < 1 else None

    def __post_init__(self) -> None:
        """Refuse what is no rate, volume or number of scans, and what would leave nothing to judge.

        Raises:
            UserError: names the key.
        """
        if isinstance(self.densest_hu, bool) or not isinstance(self.densest_hu, int | float | None):
            raise UserError(f"densest_hu must be a number of HU or null, not {self.densest_hu!r}")
        if self.densest_hu is not None and not DENSEST_TISSUE <= self.densest_hu < float("inf"):
            raise UserError(
                f"densest_hu must be at least {DENSEST_TISSUE:g} HU, above brain and most blood, or null, not "
                f"{self.densest_hu}"
            )
        check_batch(self.batch)
        check_limit(self.memory_gb)
        check_rate("false_positive_rate", self.false_positive_rate)
        check_volume("voxel_false_alarm_ml", self.voxel_false_alarm_ml)
