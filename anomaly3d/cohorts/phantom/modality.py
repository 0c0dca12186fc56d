"""What a modality decides of a phantom: how bright each tissue is, and what the scanner makes of it.

The head's shape, its lesions and its pose are the same for all; ``generate.py`` puts the two together.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from anomaly3d.atlas.head import Tissues
from anomaly3d.cohorts.phantom.lesions import Lesion
from anomaly3d.cohorts.phantom.scanner import Scan
from anomaly3d.cohorts.phantom.subject import Subject
from anomaly3d.cohorts.phantom.versions import Site, Version


@dataclass(frozen=True)
class Inside:
    """Points inside the skull: ``origin (N, 3)`` MNI mm in the undeformed brain, ``depth (N,)`` mm inside the inner
    table, ``sampled (3, N)`` of ``HeadMaps.brain``, ``patchy (N,)`` HU of slow changes, ``fluid (N,)`` share of CSF.
    """

    origin: Tensor
    depth: Tensor
    sampled: Tensor
    patchy: Tensor
    fluid: Tensor

    @property
    def grey(self) -> Tensor:
        """Share of grey matter in what is tissue, ``(N,)``."""
        return self.sampled[0] / (self.sampled[0] + self.sampled[1]).clamp_min(1e-3)


class Modality(ABC):
    """Values are HU of a CT, and the signal of an MR image."""

    air: float
    tissues: Tissues
    in_turn: tuple[str, ...]  # kinds of lesion that abnormal scans have in turn
    findings: tuple[str, ...]  # all kinds that it can show
    faults: tuple[str, ...]  # of ``faults.FAULTS``
    postoperative: tuple[str, ...] = ()

    @abstractmethod
    def sites(self, version: Version) -> Mapping[str, Site]:
        """How hospitals scan."""

    @abstractmethod
    def outside(self, hu: Tensor) -> Tensor:
        """Values of what lies outside the brain, from its HU ``(N,)``."""

    @abstractmethod
    def healthy(self, tissue: Tensor, subject: Subject, inside: Inside) -> Tensor:
        """What this person's healthy brain changes in the values ``(N,)`` of the average one's ``tissues``."""

    @abstractmethod
    def swollen(self, tissue: Tensor, oedema: Tensor) -> Tensor:
        """Values ``(N,)`` of tissue with a share of oedema ``(N,)``."""

    @abstractmethod
    def value_of(self, lesion: Lesion) -> float:
        """The value of a lesion."""

    @abstractmethod
    def scanned(self, tissue: Tensor, points: Tensor, depth: Tensor, scan: Scan) -> Tensor:
        """Values as the scanner's physics shifts them inside the skull, at ``points (N, 3)`` MNI mm, ``depth (N,)`` mm
        under it."""

    @abstractmethod
    def acquire(self, values: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
        """What is stored of noise-free values ``(X, Y, S)``: int16."""
