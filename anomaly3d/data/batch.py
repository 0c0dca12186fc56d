"""What the loaders give and every method reads."""

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """Prepared volumes of some scans; B is their number.

    ``image`` is in [-1, 1], as are ``pseudo``, the image with something pasted in, in batches of validation, and
    ``twin``, the same head without its lesion; masks are 0 or 1. Twin, ``lesion_mask`` and what another program
    has marked as lesion (``segmentation``, 0 or 1, and its ml in the scan, NaN where there is none) are there for a
    method that asks for them. ``age`` is in years, NaN where unknown; ``sex`` as in the manifest.
    """

    scan_id: list[str]
    image: Tensor  # (B, 1, D, H, W) float32
    brain: NotRequired[Tensor]  # (B, 1, D, H, W) uint8, as are other masks
    age: NotRequired[Tensor]  # (B,) float32
    sex: NotRequired[list[str]]
    label: NotRequired[Tensor]  # (B,) float32: 0 healthy, 1 abnormal, NaN unknown
    pseudo: NotRequired[Tensor]
    twin: NotRequired[Tensor]
    lesion_mask: NotRequired[Tensor]
    segmentation: NotRequired[Tensor]  # (B, 1, D, H, W) float32
    segmentation_ml: NotRequired[Tensor]  # (B,) float32
