"""How a phantom looks on CT, in HU."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from anomaly3d.atlas.head import AIR, CSF, CT_TISSUES, soft_step
from anomaly3d.cohorts.phantom.faults import FAULTS
from anomaly3d.cohorts.phantom.lesions import OTHERS, TYPES, Lesion
from anomaly3d.cohorts.phantom.modality import Inside, Modality
from anomaly3d.cohorts.phantom.postoperative import KINDS
from anomaly3d.cohorts.phantom.scanner import Scan, acquire
from anomaly3d.cohorts.phantom.subject import Subject
from anomaly3d.cohorts.phantom.versions import Site, Version


class CT(Modality):
    """Computed tomography."""

    air = AIR
    tissues = CT_TISSUES
    in_turn = TYPES
    findings = (*TYPES, *OTHERS)
    faults = tuple(FAULTS)
    postoperative = KINDS

    def sites(self, version: Version) -> Mapping[str, Site]:
        return version.sites

    def outside(self, hu: Tensor) -> Tensor:
        return hu

    def healthy(self, tissue: Tensor, subject: Subject, inside: Inside) -> Tensor:
        _, y, z = inside.origin.unbind(1)
        below = soft_step(-20 - z, 10) * soft_step(-25 - y, 10)
        more = inside.patchy + subject.cortex * (inside.grey - 0.5) + subject.fossa * below
        return subject.anatomy.paint(tissue + more * (1 - inside.fluid), inside.origin, inside.depth)

    def swollen(self, tissue: Tensor, oedema: Tensor) -> Tensor:
        return tissue - (tissue - CSF).clamp_min(0) * 0.4 * oedema

    def value_of(self, lesion: Lesion) -> float:
        return lesion.hu

    def scanned(self, tissue: Tensor, points: Tensor, depth: Tensor, scan: Scan) -> Tensor:
        """With beam hardening, more near the skull (cupping), dark and bright bars between the petrous bones, and the
        calibration's error."""
        x, y, z = points.unbind(1)
        right, front = scan.lean
        more = (1 + right * x / 70 + front * (y + 18) / 85).clamp_min(0)
        cupping = scan.cupping * (more * torch.exp(-depth.clamp_min(0) / 8) - 0.12)
        between = torch.exp(-(((z + 38) / 6) ** 2) - (x / 32) ** 2 - ((y + 25) / 30) ** 2)
        return tissue + (cupping - scan.bar * between * torch.cos((y + 25) / 9)) + scan.offset

    def acquire(self, values: np.ndarray, scan: Scan, rng: np.random.Generator) -> np.ndarray:
        return acquire(values, scan, rng)
