"""anomaly3d: learn what a healthy head CT looks like, and find what does not fit."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly3d.scoring.scorer import Scorer as Scorer

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """``anomaly3d.Scorer``, imported when it is asked for: the commands' help must not wait for torch."""
    if name == "Scorer":
        from anomaly3d.scoring.scorer import Scorer

        return Scorer
    raise AttributeError(f"module 'anomaly3d' has no attribute {name!r}")
