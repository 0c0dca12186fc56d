"""What preparing a head has in common whatever the modality: template, window, box, mask command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anomaly3d.atlas import template
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.crop import check_crop
from anomaly3d.preprocessing.mask_command import check_mask_command
from anomaly3d.scans.volume import Volume


class HeadPreprocessor(Preprocessor):
    """Registers heads to a template of their modality.

    Args:
        kind: of ``template.NAMES``.
        window: values that become -1 and 1.
        crop: ``template``: one box for all scans, ``crop_margin`` mm around the template's brain; ``scan``: the mask's
            own box, as in the paper.
        working_spacing: of the grid on which the brain mask is found.
        registration_spacing: of the scan's voxels while the affine is sought.
        registration_enough: correlation with the template at which no other start is tried.
        mask_command: somebody else's skull stripper, None for ours.
        stripped: the scans hold the brain only, another tool has removed the skull.
        smoothing: sigma of step 5, as a share of the down-sampling factor.

    Raises:
        UserError: an impossible value.
    """

    around: float  # the value of what lies around a stripped brain

    def __init__(
        self,
        kind: str,
        *,
        resolution: int,
        window: Sequence[float],
        crop: str,
        crop_margin: float,
        working_spacing: float,
        registration_spacing: float,
        registration_enough: float,
        mask_command: str | None,
        quality: Mapping[str, Any],
        stripped: bool,
        smoothing: float,
    ) -> None:
        super().__init__(resolution, quality)
        low, high = window
        self.window = (float(low), float(high))
        self.crop, self.crop_margin = crop, crop_margin
        self.working_spacing = working_spacing
        self.registration_spacing, self.registration_enough = registration_spacing, registration_enough
        self.mask_command, self.stripped, self.smoothing = mask_command, stripped, smoothing
        self.template = template.NAMES[kind]
        self._kind = kind
        self._template_path: Path | None = None
        check_crop(crop)
        if mask_command:
            check_mask_command(mask_command)

    def setup(self, data_dir: Path) -> None:
        self._template_path = template.build_template(data_dir, self._kind)

    def to_physical(self, x: np.ndarray) -> np.ndarray:
        low, high = self.window
        return (x + 1) * ((high - low) / 2) + low

    def fixed(self) -> tuple[Volume, Volume]:
        """What scans are registered to: the template, of stripped scans its brain alone, and mm to its inner table."""
        assert self._template_path is not None, "setup comes first"
        head, inner_table = template.load_template(self._template_path)
        if self.stripped:
            head = Volume(np.where(inner_table.data < 0, head.data, self.around), head.affine)
        return head, inner_table
