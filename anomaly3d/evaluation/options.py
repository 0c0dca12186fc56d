"""How an evaluation is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anomaly3d.errors import UserError
from anomaly3d.scoring.calibration import check_rate, check_volume
from anomaly3d.system.workers import Workers


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
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no rate or volume.

        Raises:
            UserError: names the key.
        """
        if not isinstance(self.by_age, bool):
            raise UserError(f"by_age must be true or false, not {self.by_age!r}")
        check_rate("false_positive_rate", self.false_positive_rate)
        check_volume("voxel_false_alarm_ml", self.voxel_false_alarm_ml)
