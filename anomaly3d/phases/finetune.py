"""Phase 3: encoder and generator together with the same loss; the critic stays frozen."""

from collections.abc import Mapping, Sequence
from typing import Any

from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.phases.base import OptimizerConfig
from anomaly3d.phases.encoder import EncoderPhase, Loss


class FinetunePhase(EncoderPhase):
    """L_E over E and G. Which of E, G, D to train with which loss is the paper's Table S2: ``trained`` and ``loss``."""

    name = "finetune"
    question = "Does fine-tuning help?"

    def __init__(
        self,
        detector: FAnoGAN | Mapping[str, Any],
        optimizer: OptimizerConfig,
        trained: Sequence[str] = ("encoder", "generator"),
        loss: Loss = "both",
        scheduler: Mapping[str, Any] | None = None,
        seed: int = 0,
        head_inputs: int | None = 8192,
    ) -> None:
        super().__init__(detector, optimizer, trained, loss, scheduler, seed, head_inputs)
