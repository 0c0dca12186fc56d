"""Detectors by the names that ``conf/detector`` gives them."""

from pathlib import Path

from anomaly3d.detectors.base import Detector, FittedDetector
from anomaly3d.detectors.controls import CONTROLS
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.detectors.supervised import Supervised

FITTED: dict[str, type[FittedDetector]] = {**CONTROLS, "supervised": Supervised}


def load_detector(name: str, path: Path) -> Detector:
    """A trained detector from its file."""
    return FITTED[name].load(path) if name in FITTED else FAnoGAN.load(path)
