"""Phase 3: encoder and generator together with the same loss; the critic stays frozen."""

from collections.abc import Mapping
from typing import Any

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.phases.base import OptimizerConfig
from anomaly3d.phases.encoder import EncoderPhase


class FinetunePhase(EncoderPhase):
    """L_E over E and G. Which of E, G, D to train is the paper's Table S2, here the key ``trained``."""

    name = "finetune"
    question = "Does fine-tuning help?"

    def __init__(
        self,
        detector: FAnoGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        trained: tuple[str, ...] = ("encoder", "generator"),
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(detector, optimizer, trained, scheduler, seed)
