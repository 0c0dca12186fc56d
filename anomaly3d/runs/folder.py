"""Folders of a run: ``runs/NAME/DETECTOR/PHASE``, and which detectors in them are ready to be used."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anomaly3d.errors import UserError
from anomaly3d.system.files import is_name, sha256, written_whole

if TYPE_CHECKING:
    from anomaly3d.detectors.base import Detector


@dataclass(frozen=True)
class PhaseFolder:
    """``runs/NAME/DETECTOR/PHASE`` and the files in it."""

    path: Path

    @property
    def model(self) -> Path:
        """The detector as the finished phase left it."""
        return self.path / "model.pt"

    @property
    def last_checkpoint(self) -> Path:
        """State of the trainer at the end of the last epoch."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before it."""
        return self.path / "checkpoints" / "previous.ckpt"

    def whole_checkpoint(self) -> Path | None:
        """The newest that is not cut short, None for none."""
        both = (self.last_checkpoint, self.previous_checkpoint)
        return next((path for path in both if zipfile.is_zipfile(path)), None)  # torch writes a zip: its end is a list

    def learned(self) -> bool:
        """Whether it keeps anything of a training."""
        return any(path.exists() for path in (self.model, self.last_checkpoint, self.previous_checkpoint))

    def read(self) -> dict[str, Any] | None:
        """The lineage, or None where the phase never began.

        Raises:
            UserError: the file is not what this program writes.
        """
        path = self.path / "lineage.json"
        if not path.exists():
            return None
        try:
            lineage = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged: remove {self.path} and train the phase again") from error
        for key in ("cohort", "prepared"):  # folders under data_dir
            if key in lineage and not is_name(str(lineage[key])):
                raise UserError(
                    f"{path} says {key} {lineage[key]!r}, which is no name of a folder: is the run to be trusted?"
                )
        return lineage

    def write(self, lineage: dict[str, Any]) -> None:
        """Replace the lineage."""
        with written_whole(self.path / "lineage.json") as path:
            path.write_text(json.dumps(lineage, indent=1))

    def finished(self) -> dict[str, Any] | None:
        """The lineage of a finished phase whose model is there, else None."""
        lineage = self.read()
        return lineage if lineage and lineage["finished"] and self.model.exists() else None


@dataclass(frozen=True)
class Trained:
    """A detector after a finished phase of a run, ready to score.

    ``name`` is its config's; ``stage`` the phase; ``earlier`` whether a later phase of the same detector is ready too.
    """

    name: str
    stage: str
    folder: PhaseFolder
    lineage: dict[str, Any]
    earlier: bool = False

    @property
    def label(self) -> str:
        """Unique in the run: ``vae``, or ``vae/STAGE`` for an earlier stage."""
        return f"{self.name}/{self.stage}" if self.earlier else self.name

    @property
    def source(self) -> str:
        """Where it came from, in words."""
        return f"run {self.folder.path.parents[1].name}"

    @property
    def named(self) -> str:
        """How commands are told it."""
        return f"run={self.folder.path.parents[1].name} detector={self.name}"

    @property
    def evaluation(self) -> str:
        """What makes thresholds for it, in words."""
        return f"'python -m anomaly3d.evaluate {self.named}'"

    def load(self) -> "Detector":
        """The detector, on the CPU."""
        from anomaly3d.detectors.base import load_detector  # torch takes seconds: which runs there are is asked before

        return load_detector(self.folder.model)

    def digest(self) -> str:
        """SHA-256 of its model file."""
        return sha256(self.folder.model)


def find_trained(run: Path) -> list[Trained]:
    """All that a run holds, detector by detector in the order of their names, the most trained stage first."""
    found = []
    for place in sorted(path for path in run.glob("*") if path.is_dir()):
        stages = [(f, lineage) for f in map(PhaseFolder, sorted(place.glob("*"))) if (lineage := f.finished())]
        stages = [(f, lineage) for f, lineage in stages if lineage["can_score"]]
        stages.sort(key=lambda stage: -stage[1]["settings"]["detector"]["phases"].index(stage[0].path.name))
        found += [
            Trained(place.name, f.path.name, f, lineage, earlier=number > 0)
            for number, (f, lineage) in enumerate(stages)
        ]
    return found


def reported_on(run: Path) -> str:
    """The detector that the run's evaluation is about, empty where there is none."""
    metrics = run / "evaluation" / "metrics.json"
    return str(json.loads(metrics.read_text())["focus"]) if metrics.exists() else ""


def choose_trained(run: Path, detector: str | None) -> Trained:
    """The most trained stage of a detector of a run; where none is named of the one that its evaluation is about, else
    of the method that was trained first, or of a run without a method the control.

    Raises:
        UserError: the run holds no such detector.
    """
    there = [t for t in find_trained(run) if not t.earlier]
    if detector is not None:
        chosen = [t for t in there if t.name == detector]
    else:
        ready = [t for t in there if t.lineage["role"] == "method"] or there
        about = reported_on(run)
        chosen = sorted(ready, key=lambda t: (t.name != about, t.lineage["made_with"]["date"]))
    if chosen:
        return chosen[0]
    if there:
        raise UserError(
            f"{run} holds no {detector}, but {', '.join(t.name for t in there)}: name one of these, or train it with "
            f"'python -m anomaly3d.train detector={detector} run={run.name}'"
        )
    if begun := sorted(path.parent.parent.name for path in run.glob("*/*/checkpoints")):
        raise UserError(
            f"{run} holds no trained detector, but {', '.join(dict.fromkeys(begun))}, begun: 'python -m "
            f"anomaly3d.train detector={begun[0]} run={run.name}' goes on with it"
        )
    train = f"'python -m anomaly3d.train{f' detector={detector}' if detector else ''} run={run.name}'"
    raise UserError(
        f"{run} holds no {detector or 'trained detector'}: {train} trains one, 'make demo' one on the phantom cohort; "
        "name another run with run=NAME"
    )
