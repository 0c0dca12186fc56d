"""Findings of all processes to files: a table of scores, reconstructions and maps beside it."""

from pathlib import Path
from typing import Any

import lightning as L
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from anomaly3d.data.module import data_of
from anomaly3d.detectors.base import Findings
from anomaly3d.scans.nifti import save_volume
from anomaly3d.scoring.anomaly_maps import MAPS, RECONSTRUCTION
from anomaly3d.scoring.familiarity import UNLIKE
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import Bar

FEATURES = ("cohort", "site", "subject_id", "label", "group", "lesions", "lesion_ml", "age", "sex")


NOTE = "inference.json"  # what made the scores beside it
RESCORED = "rescored.csv"  # beside ``scores.csv``: the same table with every other score


def read_scores(path: Path) -> pd.DataFrame:
    """A table of scores; what is said of scans as text, scores as numbers."""
    text = ("scan_id", *FEATURES, UNLIKE)
    table = pd.read_csv(path, dtype={c: str for c in text}, keep_default_na=False)
    return table.astype({c: float for c in table if c not in text})


class ScoreWriter(BasePredictionWriter):
    """One row a scan over all processes in ``scores.csv``, each ``scan_id`` once, in manifest order.

    Args:
        folder: where ``scores.csv`` goes.
        name: what the progress calls the detector.
        volumes: also keep ``reconstruction/ID.nii.gz`` and ``maps/NAME/ID.nii.gz``, where the detector has them.
    """

    def __init__(self, folder: Path, name: str, volumes: bool = False) -> None:
        super().__init__("batch")
        self.folder, self.name, self.volumes = folder, name, volumes
        self.rows: list[dict[str, Any]] = []
        self.bar: Bar | None = None

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = data_of(trainer)
        self.affines = data.split(data.predicted).set_index("scan_id")["image"]
        self.bar = Bar(f"{self.name}, {data.predicted} scans", len(self.affines))

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Findings,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        for i, scan_id in enumerate(batch["scan_id"]):
            self.rows.append({"scan_id": scan_id, **{k: float(v[i]) for k, v in prediction.scores.items()}})
            if self.volumes:
                self.keep(scan_id, prediction, i)
        assert self.bar
        self.bar.show(min(trainer.world_size * len({row["scan_id"] for row in self.rows}), self.bar.total))

    def keep(self, scan_id: str, found: Findings, place: int) -> None:
        """Write the volumes of a scan on the grid of its prepared image."""
        affine = nib.nifti1.Nifti1Image.from_filename(self.affines[scan_id]).affine
        if found.reconstruction is not None:
            path = self.folder / RECONSTRUCTION / f"{scan_id}.nii.gz"
            save_unit_range(path, found.reconstruction[place, 0].numpy(), affine)
        for name, volumes in found.maps.items():
            save_volume(self.folder / MAPS / name / f"{scan_id}.nii.gz", volumes[place, 0].numpy(), affine)

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = self.rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero:
            data, scores = data_of(trainer), pd.DataFrame(rows).drop_duplicates("scan_id")
            manifest = data.split(data.predicted)[["scan_id", *FEATURES]]
            merged = manifest.merge(scores, on="scan_id", how="inner", validate="one_to_one")
            with written_whole(self.folder / "scores.csv") as path:
                merged.to_csv(path, index=False, float_format="%.17g")
        trainer.strategy.barrier()  # the other processes read the file next
        self.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar:
            self.bar.close()


def save_unit_range(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume in [-1, 1] as int16, half the size of its floats; what lies outside becomes -1 or 1."""
    image = nib.nifti1.Nifti1Image(np.rint(volume.clip(-1, 1) * 32767).astype(np.int16), affine)
    image.header.set_slope_inter(1 / 32767, 0)
    with written_whole(path) as beside:
        nib.save(image, beside)
