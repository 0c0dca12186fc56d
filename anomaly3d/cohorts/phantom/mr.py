"""How a phantom looks on MR: spin-echo contrast, the coils' uneven sensitivity, Rician noise.

Veins, dura and calcifications are left out.
"""

from collections.abc import Mapping

import numpy as np
from scipy import ndimage
from torch import Tensor

from anomaly3d.atlas.spin_echo import DEAD, OEDEMA, PALE, TUMOUR, SpinEcho
from anomaly3d.cohorts.phantom.lesions import Infarct, Intraparenchymal, Lesion
from anomaly3d.cohorts.phantom.modality import Inside, Modality
from anomaly3d.cohorts.phantom.scanner import Scan
from anomaly3d.cohorts.phantom.subject import Subject
from anomaly3d.cohorts.phantom.versions import Site, Version

STORED = 400.0  # of white matter at a gain of 1
FRESH, OLD = 20.0, 9.0  # HU of an infarct from which on it turns to fluid, and when it nearly is

# thickness and kernel as of CT; noise as a share of white matter's signal, offset of the gain's logarithm, cupping by
# which share the head's middle is brighter than its rim, lean by which one side is brighter than the other
SITES = {
    "A": Site((3.0, 5.0), (0.02, 0.05), (0.4, 0.7), 0.5, (0.0, 0.4), (0.05, 0.20), (0.0, 0.0), lean=0.08),
    "B": Site((1.5, 6.0), (0.03, 0.08), (0.5, 0.9), 0.5, (0.5, 0.4), (0.10, 0.35), (0.0, 0.0), lean=0.15),
}


class MR(Modality):
    """A spin echo."""

    air = 0.0
    findings = in_turn = ("infarct", "tumour", "white_matter")
    faults = ("truncated", "wrong_orientation")

    def __init__(self, sequence: SpinEcho) -> None:
        self.sequence = sequence
        self.tissues = self.sequence.tissues

    def sites(self, version: Version) -> Mapping[str, Site]:
        return SITES

    def outside(self, hu: Tensor) -> Tensor:
        return self.sequence.outside(hu)

    def healthy(self, tissue: Tensor, subject: Subject, inside: Inside) -> Tensor:
        return tissue + self.tissues.per_hu * inside.patchy * (1 - inside.fluid)

    def swollen(self, tissue: Tensor, oedema: Tensor) -> Tensor:
        return tissue + (self.sequence.signal(OEDEMA) - tissue) * 0.8 * oedema

    def value_of(self, lesion: Lesion) -> float:
        """Of an infarct between tissue of days and fluid, as its HU say; of a mass, or a patch, its tissue's."""
        if isinstance(lesion, Infarct):
            dead, turned = self.sequence.signal(DEAD), (FRESH - lesion.hu) / (FRESH - OLD)
            return dead + (self.tissues.csf - dead) * min(max(turned, 0.0), 1.0)
        return self.sequence.signal(TUMOUR if isinstance(lesion, Intraparenchymal) else PALE)

    def scanned(self, tissue: Tensor, points: Tensor, depth: Tensor, scan: Scan) -> Tensor:
        return tissue

    def acquire(self, values: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
        """Blurred and times the coils' sensitivity; the magnitude of a signal with noise in both of its channels."""
        width = scan.kernel * scan.shape[0] / 256
        sharp = ndimage.gaussian_filter(values, (width, width, scan.overlap), truncate=3)
        real, imaginary = (scan.noise * rng.standard_normal(scan.shape, dtype=np.float32) for _ in range(2))
        signal = np.hypot(sharp * sensitivity(scan) + real, imaginary) * (STORED * np.exp(scan.offset))
        return np.clip(np.rint(signal), 0, 32767).astype(np.int16)


def sensitivity(scan: Scan) -> np.ndarray:
    """Of the coils on a scan's voxels, about 1: ``(X, Y, S)``; a smooth dome that leans."""
    to_mni = np.linalg.inv(scan.pose) @ scan.affine
    voxels = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), -1)
    x, y, z = np.moveaxis(voxels @ to_mni[:3, :3].T + to_mni[:3, 3], -1, 0)
    right, front = scan.lean
    squared = (x / 75) ** 2 + ((y + 18) / 90) ** 2 + ((z - 8) / 75) ** 2
    dome = scan.cupping * (0.6 - squared).clip(-1.5)
    return np.exp(dome + right * x / 75 + front * (y + 18) / 90).astype(np.float32)
