"""How bright tissues are on MR, white matter = 1: a spin echo's ``pd * (1 - exp(-TR / T1)) * exp(-TE / T2)``; after an
inversion ``TI`` earlier ``pd * |1 - 2 exp(-TI / T1) + exp(-TR / T1)| * exp(-TE / T2)``, which can leave out fluid.

Relaxation times at 3 T: grey and white matter of Wansapura et al. 1999, muscle, fat and marrow of Gold et al. 2004; of
CSF and of findings they are round numbers within what is reported, where reports differ by a factor of two.
"""

from dataclasses import dataclass
from math import exp

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import CANCELLOUS_BONE, CORTICAL_BONE, DIPLOE, FAT, MUSCLE, Tissues


@dataclass(frozen=True)
class Relaxation:
    """Proton density as a share of water's, and relaxation times in ms."""

    density: float
    t1: float
    t2: float


WHITE = Relaxation(0.70, 832, 80)
GREY = Relaxation(0.80, 1331, 110)
CSF = Relaxation(1.00, 4000, 2000)
MUSCLES = Relaxation(0.80, 1420, 32)
FATTY = Relaxation(1.00, 371, 133)
MARROW = Relaxation(0.50, 365, 133)
PALE = Relaxation(0.78, 1300, 150)  # patches of white matter, and leukoaraiosis at its worst
OEDEMA = Relaxation(0.85, 1500, 150)
TUMOUR = Relaxation(0.85, 1600, 130)
DEAD = Relaxation(0.80, 1450, 150)  # an infarct of days


@dataclass(frozen=True)
class SpinEcho:
    """A sequence: repetition, echo and, where there is an inversion, inversion time in ms."""

    tr: float
    te: float
    ti: float | None = None

    def signal(self, tissue: Relaxation) -> float:
        """Of a tissue, over white matter's."""

        def of(it: Relaxation) -> float:
            inverted = 0 if self.ti is None else 2 * (exp(-self.tr / it.t1) - exp(-self.ti / it.t1))
            return it.density * abs(1 - exp(-self.tr / it.t1) + inverted) * exp(-self.te / it.t2)

        return of(tissue) / of(WHITE)

    @property
    def tissues(self) -> Tissues:
        """Of the healthy brain."""
        return Tissues(self.signal(CSF), 1.0, self.signal(GREY), self.signal(PALE) - 1, per_hu=0.01)

    def outside(self, hu: Tensor) -> Tensor:
        """Signal ``(N,)`` of what lies outside the brain, from its HU.

        A mixture takes the signal of the tissue that has its HU: where air softly meets muscle, a film as of fat."""
        marrow = self.signal(MARROW)
        values = (0.0, self.signal(FATTY), self.signal(MUSCLES), marrow, marrow, 0.0)
        by_hu = np.interp(hu.numpy(), (-300.0, FAT, MUSCLE, CANCELLOUS_BONE, DIPLOE, CORTICAL_BONE), values)
        return torch.from_numpy(by_hu.astype(np.float32))


SEQUENCES = {"t1w": SpinEcho(500, 10), "t2w": SpinEcho(5000, 100), "flair": SpinEcho(9000, 120, 2400)}
