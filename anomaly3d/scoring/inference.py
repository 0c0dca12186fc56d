"""A trained detector over a split, by ``trainer.predict``; what has been scored before is read back."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from anomaly3d.data.module import PSEUDO, HeadCTDataModule
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.networks.layers import DownsampleConv, UpsampleConv
from anomaly3d.phases.base import Predicting, freeze
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.preprocessing.outcome import stored_outcome
from anomaly3d.runs.folder import Trained
from anomaly3d.scoring.anomaly_maps import MAPS, RECONSTRUCTION
from anomaly3d.scoring.writer import FEATURES, NOTE, RESCORED, ScoreWriter, read_scores
from anomaly3d.system.files import written_whole
from anomaly3d.system.instantiate import build
from anomaly3d.system.progress import is_leader
from anomaly3d.system.trainer import make_trainer, resolve_trainer


def preprocessor_of(trained: Trained) -> Preprocessor:
    """The preprocessor that a detector's training data went through, with their quality limits."""
    return build(trained.lineage["settings"]["preprocessing"], "preprocessing config", Preprocessor)


def require_command(trained: Trained, given: str | None) -> None:
    """Refuse to prepare scans with a program that only the run names: it may come from somebody else.

    Args:
        given: the skull stripper that the user names.

    Raises:
        UserError: the run's is another.
    """
    stored = trained.lineage["settings"]["preprocessing"].get("mask_command")
    if stored and stored != given:
        raise UserError(
            f"{trained.folder.path} was trained on scans whose skull the program {stored!r} removed: if you trust it, "
            f"let it run with 'mask_command={stored}'"
        )


def prepared_of(trained: Trained, data_dir: Path) -> PreparedCohort:
    """The prepared data that a detector was trained with.

    Raises:
        UserError: they are gone, or not as they were prepared.
    """
    cohort, prepared = trained.lineage["cohort"], trained.lineage["prepared"]
    folder = data_dir / cohort / prepared
    again = f"run 'python -m anomaly3d.prepare' with the settings in {trained.folder.path / 'config.yaml'}"
    if not (folder / "manifest.csv").exists():
        raise UserError(
            f"the prepared data of this run ({cohort}/{prepared}) are not under {data_dir}: {again}, or give "
            "data_dir=..."
        )
    found = PreparedCohort.read(folder, preprocessor_of(trained).judge)
    kept = (stored_outcome(folder, scan_id) for scan_id in found.table["scan_id"])
    if damaged := [path for outcome in kept if outcome for path in outcome.damaged(folder)]:
        raise UserError(f"{', '.join(map(str, damaged))}: not as prepared, by its SHA-256; {again}, which mends it")
    return found


def round_weights(detector: nn.Module, precision: str) -> None:
    """For a detector that only scores: round its matrices and kernels now, as mixed precision would in every batch."""
    if precision != "bf16-mixed":
        return
    for layer in detector.modules():
        if isinstance(layer, nn.Linear | nn.Conv3d | DownsampleConv | UpsampleConv):
            layer.weight.data = layer.weight.data.bfloat16()


@dataclass(frozen=True)
class Inference:
    """Scores splits of one data module; ``trainer`` is ``conf/trainer``.

    Raises:
        UserError: the trainer would look at some scans alone.
    """

    data: HeadCTDataModule
    trainer: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.trainer.get("fast_dev_run"):
            raise UserError("trainer.fast_dev_run is for a try of training: here all scans are scored")

    def run(
        self, detector: Detector, split: str, out: Path, volumes: bool = False, name: str | None = None
    ) -> pd.DataFrame:
        """The table of scores of a split, also written to ``out/scores.csv``, beside it reconstructions and maps.

        Args:
            name: what the progress calls the detector; None: its title.

        Raises:
            UserError: a scan lacks what the detector reads, or gets no number from it.
        """
        self.require_read(detector, split)
        if is_leader():
            for earlier in (RECONSTRUCTION, MAPS):  # of other scans, or of another detector
                shutil.rmtree(out / earlier, ignore_errors=True)
        freeze(detector)
        self.data.predicted, self.data.reads = split, detector.reads
        options = resolve_trainer(self.trainer)
        round_weights(detector, str(options["precision"]))
        trainer = make_trainer(
            options,
            logger=False,
            callbacks=[ScoreWriter(out, name or detector.title, volumes)],
            enable_checkpointing=False,
            inference_mode=not detector.needs_gradients,
            default_root_dir=str(out),
        )
        try:
            trainer.predict(Predicting(detector), self.data, return_predictions=False)
        except SystemExit as stop:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from stop
        table = read_scores(out / "scores.csv")
        if broken := table.loc[~np.isfinite(table["total"]), "scan_id"].tolist():
            raise UserError(
                f"{detector.title} gives {len(broken)} of {len(table)} scans no finite score (first {broken[0]}): "
                "train it anew with overwrite=true, or leave those scans out"
            )
        return table

    def require_read(self, detector: Detector, split: str) -> None:
        """Refuse scans that lack what a detector reads beside the image; of a pasted anomaly nobody has it.

        Raises:
            UserError: names the first.
        """
        rows = self.data.split(split)
        for kind in detector.reads if split != PSEUDO else ():
            if lacking := rows.loc[rows[kind] == "", "scan_id"].tolist():
                raise UserError(
                    f"{detector.title} needs the column {kind} of the manifest for every scan, and {len(lacking)} of "
                    f"{len(rows)} {split} scans have none there (the first is {lacking[0]}): name their files"
                )

    def once(self, trained: Trained, split: str, out: Path, volumes: bool = False) -> pd.DataFrame:
        """As ``run``, but read back where the same detector has scored the same scans before."""
        rows = self.data.split(split)
        stats = [(Path(p).name, Path(p).stat().st_mtime_ns) for p in rows["image"]]
        described = rows[["scan_id", *FEATURES]].to_csv(index=False)
        key = {
            "model": trained.digest(),
            "scans": hashlib.sha256(repr((stats, described)).encode()).hexdigest(),
            "split": split,
            "precision": str(resolve_trainer(self.trainer)["precision"]),
            "volumes": volumes,
        }
        note = out / NOTE
        whole = {**key, "files": volumes_in(out)}  # unless somebody has removed some to free the disk
        if note.exists() and (out / "scores.csv").exists() and json.loads(note.read_text()) == whole:
            return read_scores(out / "scores.csv")
        for earlier in (note, out / RESCORED):
            earlier.unlink(missing_ok=True)
        table = self.run(trained.load(), split, out, volumes, trained.label)
        if is_leader():
            with written_whole(note) as path:
                path.write_text(json.dumps({**key, "files": volumes_in(out)}))
        return table


def volumes_in(out: Path) -> dict[str, int]:
    """How many volumes lie beside the scores of a split, by folder."""
    return {folder: sum(1 for _ in (out / folder).rglob("*.nii.gz")) for folder in ("reconstruction", "maps")}
