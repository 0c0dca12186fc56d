"""Evaluated runs in groups: those whose trainings differ in nothing but the seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly3d.errors import UserError
from anomaly3d.runs.folder import PhaseFolder, Trained, find_trained, reported_on
from anomaly3d.runs.lineage import WHERE, flatten
from anomaly3d.scoring.writer import NOTE
from anomaly3d.system.files import sha256


@dataclass(frozen=True)
class Training:
    """How a run's detector came to be.

    ``label`` is the detector's in its run, ``settings`` are those of each of its phases in that run by
    ``PHASE.KEY``, but for seeds and places.
    """

    label: str
    seed: int
    settings: dict[str, Any]


def training_of(runs: Path, name: str) -> Training | None:
    """The training of ``demo`` or ``demo/pca``; None where the run does not hold it any more.

    Raises:
        UserError: it was trained anew since it was evaluated.
    """
    run, _, detector = name.partition("/")
    label = detector or reported_on(runs / run)
    trained = next((t for t in find_trained(runs / run) if t.label == label), None)
    if trained is None:
        return None
    note = runs / run / "evaluation" / label / NOTE
    if note.exists() and json.loads(note.read_text())["model"] != trained.digest():
        raise UserError(
            f"{name} was trained anew since it was evaluated, and its scores are those of before: run "
            f"'python -m anomaly3d.evaluate run={run}' again"
        )
    return Training(label, trained.lineage["settings"]["seed"], settings_of(trained))


def settings_of(trained: Trained) -> dict[str, Any]:
    """The settings of a detector's phase and of those that it began with, ``PHASE.KEY``; of a parent that does not lie
    beside it, or not any more, the first digits of its digest, ``PHASE.parent``."""
    phases, earliest = trained.lineage["settings"]["detector"]["phases"], trained.stage
    settings: dict[str, Any] = {}
    wanted: str | None = trained.digest()
    for phase in reversed(phases[: phases.index(trained.stage) + 1]):
        folder = PhaseFolder(trained.folder.path.with_name(phase))
        lineage = folder.finished()
        if lineage is None or sha256(folder.model) != wanted:
            continue
        own = flatten(lineage["settings"]).items()
        settings |= {f"{phase}.{key}": value for key, value in own if key not in ("seed", *WHERE)}
        earliest, wanted = phase, lineage["parent_sha256"]
    return settings | ({f"{earliest}.parent": wanted[:8]} if wanted else {})


def gather(runs: Path, patterns: Sequence[str]) -> dict[str, list[str]]:
    """Runs that fit patterns such as ``kappa-*`` or ``seed*/pca``, one a seed, by what sets their settings apart.

    Raises:
        UserError: nothing fits, or two differ in nothing at all.
    """
    groups: dict[str, dict[int, str]] = {}
    trainings: dict[str, Training] = {}
    for pattern in patterns:
        run, _, detector = str(pattern).partition("/")
        there = sorted(path.parents[1].name for path in runs.glob(f"{run}/evaluation/metrics.json"))
        if not there:
            raise UserError(f"runs={pattern}: no run of {runs} of that name has been evaluated")
        for name in (f"{found}/{detector}".rstrip("/") for found in there):
            training = training_of(runs, name)
            if training is None:
                raise UserError(f"{runs / name} holds no such detector: is it {name.split('/')[0]}/DETECTOR?")
            key = json.dumps([training.label, training.settings], sort_keys=True)
            trainings.setdefault(key, training)
            same = groups.setdefault(key, {}).setdefault(training.seed, name)
            if same != name:
                raise UserError(f"{same} and {name} have the same settings and seed={training.seed}: name one of them")
    names = distinct_names(list(trainings.values()))
    return {name: list(seeds.values()) for name, seeds in zip(names, groups.values(), strict=True)}


def distinct_names(trainings: Sequence[Training]) -> list[str]:
    """``kappa=0.3`` for what nothing else sets apart; with the detector's label where there are several.

    The last part of a key stands for it where no other that differs ends like it, or has other values.
    """
    labels = {training.label for training in trainings}
    names = []
    for training in trainings:
        rivals = [other for other in trainings if other.label == training.label]
        keys = {key for other in rivals for key in other.settings}
        differing = [k for k in sorted(keys) if len({repr(other.settings.get(k)) for other in rivals}) > 1]
        values: dict[str, Any] = {}
        for key in differing:
            last = key.split(".")[-1]
            alike = [other for other in differing if other.split(".")[-1] == last]
            one = all(len({repr(other.settings.get(k)) for k in alike}) == 1 for other in rivals)
            values[last if one else key] = training.settings.get(key)
        parts = [training.label] if len(labels) > 1 or not values else []
        names.append(", ".join([*parts, *(f"{key}={value}" for key, value in values.items())]))
    return names
