"""The interface that the rest of the program knows a modality by."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from anomaly3d.errors import UserError
from anomaly3d.scans.volume import Volume

Limits = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True)
class Companions:
    """What came with a scan, each on the scan's world.

    ``brain_mask`` wins over the preprocessor's own; ``masks`` by name go the scan's way, for example a lesion's;
    ``twin`` is the same head without its lesion and gets the scan's transform and mask; ``transform_fault`` is a 4x4 in
    MNI mm that spoils the registration on purpose, to test what notices it.
    """

    brain_mask: Volume | None = None
    masks: dict[str, Volume] = field(default_factory=dict)
    twin: Volume | None = None
    transform_fault: np.ndarray | None = None


@dataclass(frozen=True)
class Prepared:
    """A scan on one small MNI grid.

    ``image`` (and ``extra["twin"]``) are float32 in [-1, 1], masks uint8; ``quality`` are the numbers that the limits
    are about. ``preview (rows, columns, 3)`` uint8 shows the scan before anything was cut away, the mask outlined.
    """

    image: np.ndarray
    brain_mask: np.ndarray
    extra: dict[str, np.ndarray]
    affine: np.ndarray
    mni_to_scan: np.ndarray
    quality: dict[str, float]
    preview: np.ndarray | None = None


class Preprocessor(ABC):
    """From a scan of one modality to a volume in [-1, 1] in MNI space, and back to its unit.

    A subclass is built from ``conf/preprocessing``; its public attributes but ``quality`` decide what a prepared volume
    is, and so does ``version``, which is raised when the same settings would give other volumes.

    Args:
        resolution: voxels along each axis of the prepared volume.
        quality: ``[lowest, highest]`` allowed of each quality number, None for no limit.

    Raises:
        UserError: limits that are not such pairs.
    """

    unit = "HU"
    modality = "CT"  # as DICOM names it
    scans = "head scans"  # for the model card
    stored: type[np.generic] = np.float32  # of volumes in this unit on a scan's own grid
    version = 1
    reasons: Mapping[str, str] = {}  # quality number -> what it means when it is out of its limits

    def __init__(self, resolution: int, quality: Mapping[str, Any] | None = None) -> None:
        self.resolution = resolution
        self.quality: Limits = {name: read_limits(name, pair) for name, pair in (quality or {}).items()}
        if unknown := [name for name in self.quality if self.reasons and name not in self.reasons]:
            raise UserError(f"preprocessing.quality.{unknown[0]}: there are {', '.join(self.reasons)}")

    def hash(self) -> str:
        """Eight hex digits of everything that decides what a prepared volume is."""
        settings = {k: v for k, v in vars(self).items() if k != "quality" and not k.startswith("_")}
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        recipe = json.dumps({**settings, "version": self.version, "kind": kind}, sort_keys=True, default=str)
        return hashlib.sha256(recipe.encode()).hexdigest()[:8]

    def setup(self, data_dir: Path) -> None:  # noqa: B027  most modalities need nothing
        """Make or find under ``data_dir`` what all scans share, for example a template; called before ``prepare``."""

    @abstractmethod
    def read(self, path: Path) -> Volume:
        """A scan of this modality in its unit.

        Raises:
            UnreadableScan: it is not one.
        """

    @abstractmethod
    def prepare(self, scan: Volume, companions: Companions) -> Prepared:
        """The scan as prepared volume.

        Raises:
            UnreadableScan: it cannot be prepared.
        """

    @abstractmethod
    def to_physical(self, x: np.ndarray) -> np.ndarray:
        """Values of [-1, 1] in ``unit``; an affine map, the same for all scans."""

    def air(self, scan: Volume) -> float:
        """What of a scan as ``read`` gives it is darker is no head."""
        return -500.0

    def comparable(self, stored: np.ndarray, there: np.ndarray, prepared: np.ndarray) -> np.ndarray:
        """A scan as it is stored, in values like a prepared volume's, to be shown beside it.

        Args:
            stored: any shape; ``there`` are its values at some places of the brain, ``prepared`` what they became.
        """
        return (stored - self.to_physical(np.array(0.0))) / self.per_unit

    @property
    def per_unit(self) -> float:
        """How much of ``unit`` a difference of 1 is."""
        low, high = self.to_physical(np.array([0.0, 1.0]))
        return float(high - low)

    def passes(self, name: str, value: float) -> bool:
        """Whether a quality number is within its limits; one that could not be measured is not."""
        low, high = self.quality.get(name, (None, None))
        return (low is None or value >= low) and (high is None or value <= high)

    def judge(self, quality: Mapping[str, float]) -> list[str]:
        """Reasons to reject, empty for a scan that is fit."""
        reasons = []
        for name, (low, high) in self.quality.items():
            value = quality[name]
            if not self.passes(name, value):
                wanted = " to ".join(f"{x:g}" for x in (low, high) if x is not None)
                word = "at least " if high is None else "at most " if low is None else ""
                reasons.append(f"{self.reasons.get(name, name)}: {value:g}, wanted {word}{wanted}")
        return reasons


def read_limits(name: str, pair: Any) -> tuple[float | None, float | None]:
    """``[lowest, highest]`` of a quality number.

    Raises:
        UserError: anything else.
    """
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(x, int | float | None) for x in pair):
        raise UserError(f"preprocessing.quality.{name} must be [lowest, highest] with null for no limit, not {pair!r}")
    return pair[0], pair[1]
