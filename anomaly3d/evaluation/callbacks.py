"""Lightning callbacks: test scores from all processes, volumes and curves to the logger, progress lines."""

from pathlib import Path
from typing import Any

import lightning as L
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import Logger, WandbLogger

from anomaly3d.evaluation.metrics import both_classes, labels_and_scores, ranked, summarise
from anomaly3d.files import written_whole
from anomaly3d.phases.gan import SAMPLES
from anomaly3d.progress import Bar, say

FEATURES = ("cohort", "site", "subject_id", "label", "group", "lesions", "lesion_ml", "age", "sex")


class CollectScores(L.Callback):
    """Gather one row a scan over all processes into ``scores.csv``, each ``scan_id`` once, in manifest order.

    The scans are those of the data module's ``tested`` split.

    Args:
        folder: where ``scores.csv`` goes.
        reconstructions: also keep G(E(x)) as ``reconstruction/ID.nii.gz``.
    """

    def __init__(self, folder: Path, reconstructions: bool = False) -> None:
        self.folder, self.reconstructions = folder, reconstructions
        self.rows: list[dict[str, Any]] = []

    def on_test_batch_end(
        self,
        trainer: Any,
        module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        distances = outputs["distances"]
        for i, scan_id in enumerate(outputs["scan_id"]):
            self.rows.append({"scan_id": scan_id, **{k: float(v[i]) for k, v in distances.items()}})
            if self.reconstructions:
                self.keep(trainer, scan_id, outputs["reconstruction"][i, 0].numpy())

    def keep(self, trainer: Any, scan_id: str, volume: np.ndarray) -> None:
        """Write a volume in [-1, 1] as int16 NIfTI on the grid of the prepared scan."""
        data = trainer.datamodule
        path = data.split(data.tested).set_index("scan_id").image[scan_id]
        image = nib.Nifti1Image(np.rint(volume * 32767).astype(np.int16), nib.Nifti1Image.from_filename(path).affine)
        image.header.set_slope_inter(1 / 32767, 0)
        with written_whole(self.folder / "reconstruction" / f"{scan_id}.nii.gz") as path:
            nib.save(image, path)

    def on_test_epoch_end(self, trainer: Any, module: L.LightningModule) -> None:
        rows = self.rows
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for part in gathered for row in part]
        if trainer.is_global_zero:
            scores = pd.DataFrame(rows).drop_duplicates("scan_id")
            data = trainer.datamodule
            manifest = data.split(data.tested)[["scan_id", *FEATURES]]
            merged = manifest.merge(scores, on="scan_id", how="inner", validate="one_to_one")
            with written_whole(self.folder / "scores.csv") as path:
                merged.to_csv(path, index=False, float_format="%.17g")
        trainer.strategy.barrier()  # the other processes read the file next

    def table(self) -> pd.DataFrame:
        """What ``scores.csv`` holds."""
        return read_scores(self.folder / "scores.csv")


def read_scores(path: Path) -> pd.DataFrame:
    """A table of scores; manifest columns as text, distances as numbers."""
    table = pd.read_csv(path, dtype={c: str for c in ("scan_id", *FEATURES)}, keep_default_na=False)
    return table.astype({c: float for c in table if c not in ("scan_id", *FEATURES)})


def middle_planes(volume: torch.Tensor) -> np.ndarray:
    """Axial, coronal and sagittal middle slices of ``(D, H, W)`` in [-1, 1], upright, side by side, in [0, 255]."""
    data = volume.detach().float().cpu().numpy()
    x, y, z = (n // 2 for n in data.shape)
    planes = [np.flipud(plane.T) for plane in (data[:, :, z], data[:, y], data[x])]
    return ((np.concatenate(planes, 1).clip(-1, 1) + 1) * 127.5).astype(np.uint8)


class LogVolumes(L.Callback):
    """After each validation: generated volumes in phase 1, input, reconstruction and residual in phases 2 and 3."""

    def __init__(self, enabled: bool, count: int = 3) -> None:
        self.enabled, self.count = enabled, count

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        if not self.enabled or not trainer.is_global_zero or not isinstance(trainer.logger, WandbLogger):
            return
        if module.name == "gan":
            volumes = module.detector.generator(module.latent(self.count, 0, SAMPLES))
            images = [middle_planes(v[0]) for v in volumes]
            trainer.logger.log_image("gan/samples", images)
            return
        data = trainer.datamodule.dataset("validation")
        x = torch.stack([data[i]["image"] for i in range(min(self.count, len(data)))]).to(module.device)
        reconstruction = module.detector.reconstruct(x)
        images = [
            np.concatenate([middle_planes(v[0]) for v in (a, b, (a - b).abs() - 1)])
            for a, b in zip(x, reconstruction, strict=True)
        ]
        trainer.logger.log_image(f"{module.name}/reconstructions", images)


class ShowProgress(L.Callback):
    """Steps of training, scans of a test: a live bar in a terminal; in a log a line after each validation and test."""

    bar: Bar | None = None  # while there is something to show

    def on_train_start(self, trainer: Any, module: Any) -> None:
        steps = trainer.datamodule.steps_per_epoch
        self.bar = Bar(f"{module.name}, steps", trainer.max_epochs * steps, trainer.current_epoch * steps, lines=False)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert self.bar
        self.bar.show(trainer.current_epoch * trainer.datamodule.steps_per_epoch + batch_idx + 1)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        assert self.bar
        done = (trainer.current_epoch + 1) * trainer.datamodule.steps_per_epoch
        names = sorted(k for k in trainer.callback_metrics if k.startswith(f"{module.name}/"))
        numbers = ", ".join(f"{k.split('/')[1]} {float(trainer.callback_metrics[k]):.4g}" for k in names)
        say(f"{module.name}: step {done}/{self.bar.total}, {self.bar.left(done)}; {numbers}")

    def on_test_start(self, trainer: Any, module: Any) -> None:
        data, self.done = trainer.datamodule, 0
        self.bar = Bar(f"{type(module.detector).__name__}, {data.tested} scans", len(data.split(data.tested)))

    def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        assert self.bar
        self.done += trainer.world_size * len(set(batch["scan_id"]))
        self.bar.show(min(self.done, self.bar.total))

    def close(self) -> None:
        """Give the terminal back."""
        if self.bar:
            self.bar.close()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.close()

    def on_test_end(self, trainer: Any, module: Any) -> None:
        self.close()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.close()


def log_evaluation(logger: Logger | None, table: pd.DataFrame, stage: str) -> None:
    """AUC, AP, ROC and PR curves of the test scans to W&B, under ``STAGE/test_...``; nothing is chosen by them."""
    rows = ranked(table)
    if not isinstance(logger, WandbLogger) or not both_classes(rows):
        return
    import wandb

    labels, scores = labels_and_scores(rows)
    metrics = summarise(table, {})
    # the plots want two probabilities a scan; ranks in (0, 1) leave both curves as they are
    share = pd.Series(scores).rank().to_numpy() / (len(scores) + 1)
    pairs, names = np.stack([1 - share, share], 1), ["normal", "abnormal"]
    abnormal: Any = [1]
    numbers = {
        f"{stage}/test_{kind}_{name}": estimate["value"]
        for kind in ("auc", "ap")
        for name, estimate in metrics[kind].items()
    }
    logger.experiment.log(
        {
            **numbers,
            f"{stage}/test_roc": wandb.plot.roc_curve(labels.tolist(), pairs.tolist(), names, classes_to_plot=abnormal),
            f"{stage}/test_pr": wandb.plot.pr_curve(labels.tolist(), pairs.tolist(), names, classes_to_plot=abnormal),
        }
    )
    logger.experiment.summary.update(numbers)
