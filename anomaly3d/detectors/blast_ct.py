"""blast-ct (Monteiro et al. 2020): lesions as that program has marked them, read from its label maps."""

import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Findings, Role
from anomaly3d.detectors.controls import Control


class BlastCT(Control):
    """An upper control: how many ml of a scan the program marks, of whatever class. It learns nothing here.

    The label maps, 0 where there is no lesion, are files on the scans, in the manifest's column ``segmentation``.
    """

    title = "blast-ct (supervised)"
    role: Role = "upper"
    reads = ("segmentation", "segmentation_ml")

    def examine(self, batch: Batch) -> Findings:
        """``total``: ml on the scan's own grid; map ``segmentation``: 1 where a lesion is marked, else 0."""
        return Findings({"total": batch["segmentation_ml"]}, maps={"segmentation": batch["segmentation"]})

    def quick_score(self, batch: Batch) -> Tensor:
        """Zeros ``(B,)``: nothing is learned, and validation scans need no label map."""
        return torch.zeros(len(batch["image"]), device=batch["image"].device)
