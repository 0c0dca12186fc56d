"""What the loaders give and every method reads."""

from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """Prepared volumes of some scans; B is their number.

    ``image`` is in [-1, 1]; ``brain`` is 0 or 1; ``age`` in years, NaN where unknown; ``sex`` as in the manifest.
    Masks are 0 or 1, ``twin`` is the same head without its lesion; they are there for a method that ``reads`` them.
    ``pseudo`` is the image with something pasted in, in batches of validation.
    """

    scan_id: list[str]
    image: Tensor  # (B, 1, D, H, W) float32, and so are the other volumes
    brain: NotRequired[Tensor]
    age: NotRequired[Tensor]  # (B,) float32
    sex: NotRequired[list[str]]
    label: NotRequired[Tensor]  # (B,) float32: 0 healthy, 1 abnormal, NaN unknown
    pseudo: NotRequired[Tensor]
    twin: NotRequired[Tensor]
    lesion_mask: NotRequired[Tensor]
