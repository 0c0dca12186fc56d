"""Running a trained detector over a split: distances to ``scores.csv``, reconstructions beside it. Nothing twice."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from anomaly3d.data import HeadCTDataModule
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.evaluation.callbacks import CollectScores, ShowProgress, read_scores
from anomaly3d.files import sha256, written_whole
from anomaly3d.hardware import make_trainer, round_weights, trainer_options
from anomaly3d.lineage import PhaseFolder
from anomaly3d.phases.base import Scoring, freeze
from anomaly3d.progress import is_leader

STAGES = ("finetune", "encoder")  # of f-AnoGAN, the most trained first


def finished_stages(run: Path, detector: str = "fanogan") -> dict[str, PhaseFolder]:
    """The finished phases of a run's detector that can score, the most trained first.

    Raises:
        UserError: there is none.
    """
    stages = {s: PhaseFolder(run / s) for s in (STAGES if detector == "fanogan" else (detector,))}
    done = {s: f for s, f in stages.items() if (lineage := f.read()) and lineage["finished"] and f.model.exists()}
    if not done and detector != "fanogan":
        raise UserError(
            f"{run} holds no {detector}: fit one with 'python -m anomaly3d.train +phase=fit detector={detector} "
            f"run={run.name}' first"
        )
    if not done:
        raise UserError(
            f"{run} holds no finished encoder or finetune phase: 'make demo' trains one on the phantom cohort, "
            "'python -m anomaly3d.train -m +phase=gan,encoder,finetune run=NAME' one on your "
            "data; name it with run=NAME"
        )
    return done


def prepared_folder(lineage: dict[str, Any], config_file: Path, data_dir: Path) -> Path:
    """Where the prepared data of a run lie.

    Raises:
        UserError: they are gone.
    """
    found = sorted(data_dir.glob(f"*/{lineage['prepared']}/manifest.csv"))
    for manifest in found:
        if manifest.parent.parent.name == lineage["cohort"]:
            return manifest.parent
    raise UserError(
        f"the prepared data of this run ({lineage['cohort']}/{lineage['prepared']}) are not under {data_dir}: run "
        f"'python -m anomaly3d.prepare' with the settings in {config_file}, or give data_dir=..."
    )


@dataclass(frozen=True)
class Inference:
    """Scores splits of one data module with the trainer of a config."""

    data: HeadCTDataModule
    config: DictConfig

    def run(self, detector: Detector, split: str, out: Path, reconstructions: bool = False) -> pd.DataFrame:
        """The table of distances of a split, also written to ``out/scores.csv``."""
        freeze(detector)
        self.data.tested = split
        collect = CollectScores(out, reconstructions)
        options, _ = trainer_options(self.config.trainer)
        round_weights(detector, options["precision"])
        trainer = make_trainer(
            options,
            logger=False,
            callbacks=[collect, ShowProgress()],
            enable_progress_bar=False,
            enable_checkpointing=False,
            default_root_dir=out,
        )
        trainer.test(Scoring(detector), self.data, verbose=False)
        return collect.table()

    def once(self, detector: Detector, model: Path, split: str, out: Path) -> pd.DataFrame:
        """As ``run`` with reconstructions, but read back where the same model has scored the same scans before."""
        options, _ = trainer_options(self.config.trainer)
        images = [(Path(p).name, Path(p).stat().st_mtime_ns) for p in self.data.split(split)["image"]]
        key = {
            "model": sha256(model),
            "manifest": sha256(self.data.folder / "manifest.csv"),
            "images": hashlib.sha256(repr(images).encode()).hexdigest(),
            "split": split,
            "precision": str(options["precision"]),
        }
        note = out / "inference.json"
        if note.exists() and (out / "scores.csv").exists() and json.loads(note.read_text()) == key:
            return read_scores(out / "scores.csv")
        note.unlink(missing_ok=True)
        table = self.run(detector, split, out, reconstructions=True)
        if is_leader():
            with written_whole(note) as path:
                path.write_text(json.dumps(key))
        return table
