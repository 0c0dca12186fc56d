"""The interface that training, scoring and evaluation know every method by."""

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.data.pseudo_anomalies import KINDS
from anomaly3d.errors import UserError
from anomaly3d.system.instantiate import build
from anomaly3d.system.weights import DAMAGE, not_weights, read_weights, write_weights

AGAIN = "train its phase anew"
Role = Literal["method", "trivial", "upper", "oracle"]


@dataclass(frozen=True)
class Findings:
    """What a detector says of a batch of B scans.

    ``scores`` are ``(B,)`` each, higher is more abnormal; ``total`` is the method's anomaly score. ``reconstruction``
    is the healthy volume nearest to each scan, ``(B, 1, D, H, W)`` in [-1, 1]; from it comes the map ``residual``, the
    scan minus it. ``maps`` are further signed maps of the method's own by name, ``(B, 1, D, H, W)`` each, for example
    logits.
    """

    scores: dict[str, Tensor]
    reconstruction: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)


class Detector(nn.Module, ABC):
    """A method that learns what is healthy, or a control.

    A method implements ``examine``, and either ``loss`` or ``fit`` unless it has phases of its own. Its constructor
    takes plain values, which ``config`` remembers. Class attributes:

    - ``title``: for tables and figures.
    - ``role``: a method; a trivial control; an upper control, which is shown lesions; an oracle, which knows more.
    - ``needs_gradients``: ``examine`` computes gradients inside ``torch.enable_grad()``, as in a latent search.
    - ``learns_from``: the split it is trained on; only an upper control's is not ``train``.
    - ``taught_with``: columns of the manifest whose volumes are in its training batches, beside image and brain mask.
    - ``reads``: the same for all batches, also those that are scored: for oracles, and for other programs' results,
      of which ``segmentation_ml`` is a number.
    - ``parts``: names of the scores whose weighted sum ``total`` is, if it is one.
    - ``combined``: names of scores, also of the score layer's, that together are the method's one (``combination.py``).
    - ``multiple``: the volumes' sides are multiples of it.
    - ``needs_parent``: what it is without a phase before has learned nothing.
    - ``signed``: ``total`` may be negative, as logarithms of densities are.
    - ``fewest``: training scans without which it cannot learn.
    """

    title: str
    role: Role = "method"
    needs_gradients = False
    learns_from = "train"
    taught_with: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    combined: tuple[str, ...] = ()
    multiple = 1
    needs_parent = False
    signed = False
    fewest = 1
    config: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> "Detector":
        detector = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind_partial(None, *args, **kwargs).arguments
        plain = {name: as_plain(value) for name, value in list(given.items())[1:]}
        detector.config = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **plain}
        return detector

    @abstractmethod
    def examine(self, batch: Batch) -> Findings:
        """Scores, and where the method has them reconstruction and maps, of a batch."""

    @property
    def judged_by(self) -> tuple[str, ...]:
        """Pasted anomalies of ``KINDS`` by which its scores and checkpoints may be chosen: none that it learned."""
        return KINDS

    def quick_score(self, batch: Batch) -> Tensor:
        """``total (B,)``, or where ``examine`` takes long, what stands in for it at validations while training."""
        return self.examine(batch).scores["total"]

    def shown(self, x: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """What the networks of a method with phases of its own see of volumes ``(B, 1, D, H, W)``.

        Args:
            noise: in a training step, where it may be drawn with ``dealt``; None: all there is to see.
        """
        return x

    def person(self, batch: Batch, noise: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """Who a batch shows, ``(B, 4)`` of ``data/people.py``, for networks that are told it; nothing for others.

        Args:
            noise: in a training step, by which some are not told.
        """
        return ()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """``loss``, a scalar to minimise over the detector's parameters, and its parts; for the phase ``fit``.

        Torch's generator is seeded by the step; what a volume needs of its own is drawn with ``dealt``, so that it is
        the same on any number of processes.
        """
        raise NotImplementedError

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        """Learn at once from healthy volumes ``(N, 1, D, H, W)``; ``validation`` may choose between variants.

        ``brains`` are the masks of ``train``, uint8.

        What is learned belongs into buffers. For the phase ``fit``, in place of ``loss``.
        """
        raise NotImplementedError

    def begin_with(self, parent: "Detector") -> None:
        """Take over what an earlier phase learned."""
        self.load_state_dict(parent.state_dict())

    @property
    def fits(self) -> bool:
        """Whether the method learns something by ``fit``."""
        return type(self).fit is not Detector.fit

    @property
    def fits_at_once(self) -> bool:
        """Whether it learns by ``fit`` and not by ``loss``."""
        return self.fits

    def recompute_activations(self) -> None:
        """Use less memory in training by computing activations again for gradients.

        Raises:
            UserError: the method cannot.
        """
        raise UserError(f"gradient_checkpointing=true: {self.title} cannot recompute its activations")

    def save(self, path: Path) -> None:
        """Write config and state; the file loads with ``weights_only=True``."""
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        write_weights(path, {"config": self.config, "state": state})

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Buffers take the shape of what was learned, which a new detector does not know."""
        for name, value in list(self.named_buffers(recurse=False)):
            stored = state_dict.get(prefix + name)
            if stored is not None and stored.shape != value.shape:
                setattr(self, name, torch.empty_like(stored, device=value.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def as_plain(value: Any) -> Any:
    """A constructor's argument as what a file can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): as_plain(v) for k, v in value.items()}
    return [as_plain(v) for v in value] if isinstance(value, list | tuple) else value


def build_detector(config: Mapping[str, Any]) -> Detector:
    """A detector that has learned nothing, from ``module`` of ``conf/detector``.

    Raises:
        UserError: arguments that it does not take.
    """
    return build(config, "detector config", Detector, recursive=False)


def load_detector(path: Path) -> Detector:
    """Read what ``Detector.save`` wrote, onto the CPU.

    Raises:
        UserError: the file is damaged, or holds another class than a detector that may be named.
    """
    stored = read_weights(path, AGAIN)
    try:
        detector = build_detector(stored["config"])
        detector.load_state_dict(stored["state"])
    except DAMAGE as error:
        raise not_weights(path, error, AGAIN) from error
    return detector
