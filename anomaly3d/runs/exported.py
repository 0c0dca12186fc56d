"""Exported detectors: a folder that scores scans on a machine without the run that it came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from anomaly3d.errors import UserError
from anomaly3d.runs.folder import PhaseFolder, Trained
from anomaly3d.system.files import sha256

if TYPE_CHECKING:
    from anomaly3d.detectors.base import Detector

WEIGHTS = "model.safetensors"
DETECTOR = "detector.json"  # which detector it is, with its constructor's arguments
PREPROCESSING = "preprocessing.yaml"
SUMS = "SHA256SUMS"  # as sha256sum writes and checks it
AGAIN = "export the run again"


@dataclass(frozen=True)
class Exported(Trained):
    """A detector as ``anomaly3d.export`` left it; ``lineage`` has what scoring asks of one."""

    @property
    def source(self) -> str:
        return f"model {self.folder.path.name}"

    @property
    def named(self) -> str:
        return f"model={self.folder.path}"

    @property
    def evaluation(self) -> str:
        return f"'python -m anomaly3d.evaluate detector={self.name}' of its run, before it is exported,"

    def load(self) -> "Detector":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from anomaly3d.detectors.base import build_detector
        from anomaly3d.system.weights import DAMAGE, not_weights

        path = self.folder.path / WEIGHTS
        detector = build_detector(self.lineage["config"])
        try:
            detector.load_state_dict(load_file(path))
        except (SafetensorError, *DAMAGE) as error:
            raise not_weights(path, error, AGAIN) from error
        return detector

    def digest(self) -> str:
        """That of the run's model file, so that scores by the run and by its export name the same model."""
        return str(self.lineage["model_sha256"])


def read_exported(folder: Path) -> Exported:
    """The detector of an exported folder, after every file was held against its digest.

    Raises:
        UserError: it is none, or a file is missing or not as it was exported.
    """
    verify(folder)
    try:
        described: dict[str, Any] = json.loads((folder / DETECTOR).read_text("utf-8"))
        settings = {"preprocessing": yaml.safe_load((folder / PREPROCESSING).read_text("utf-8"))}
        name, stage = str(described["name"]), str(described["stage"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"model={folder}: {DETECTOR} or {PREPROCESSING} is not of this version: {AGAIN}") from error
    return Exported(name, stage, PhaseFolder(folder), {**described, "settings": settings})


def verify(folder: Path) -> None:
    """Hold the files of an exported folder against ``SHA256SUMS``.

    Raises:
        UserError: names the first that is missing or another.
    """
    sums = folder / SUMS
    if not sums.is_file():
        raise UserError(f"model={folder} holds no {SUMS}: give a folder that 'python -m anomaly3d.export' has written")
    lines = [line.split("  ", 1) for line in sums.read_text("utf-8").splitlines()]
    listed = {words[1]: words[0] for words in lines if len(words) == 2}
    for name in (WEIGHTS, DETECTOR, PREPROCESSING):
        if name not in listed:
            raise UserError(f"{sums} does not list {name}: {AGAIN}")
    for name, digest in listed.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise UserError(f"{path} is listed in {SUMS} and not there: copy the whole folder anew")
        if sha256(path) != digest:
            raise UserError(f"{path} is not as it was exported, by its SHA-256: copy the whole folder anew")
