"""An exponential moving average of the weights, in place of those of the last step."""

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmAverage(WeightAveraging):
    """After n steps the average keeps ``min(decay, (1 + n) / (10 + n))`` of what it was.

    Without that beginning a phase of some hundred steps would keep what it began with: of 0.999 a step 45 % after 800.

    Raises:
        ValueError: a decay outside of 0 to 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to below 1, not {decay}")

        def average(before: Tensor, now: Tensor, count: Tensor) -> Tensor:
            kept = ((1 + count) / (10 + count)).clamp(max=decay)
            return kept * before + (1 - kept) * now

        super().__init__(avg_fn=average)
