"""``+phase=fit``: a detector of one stage, fitted to the healthy volumes of the training split."""

import shutil
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from anomaly3d.data import HeadCTDataModule
from anomaly3d.detectors.controls import FEWEST
from anomaly3d.detectors.registry import FITTED
from anomaly3d.errors import UserError
from anomaly3d.lineage import PhaseFolder, can_resume, describe
from anomaly3d.preparation import prepare_from_config
from anomaly3d.progress import say
from anomaly3d.quiet import hush
from anomaly3d.training import plain_settings


def labelled_halves(data: HeadCTDataModule) -> torch.Tensor:
    """As many healthy as abnormal labelled volumes, the healthy first, whatever quality control left of them."""
    labels = data.split("labelled")["label"].to_numpy()
    healthy, ill = np.flatnonzero(labels == "0"), np.flatnonzero(labels == "1")
    count = min(len(healthy), len(ill))
    return data.volumes("labelled")[np.concatenate([healthy[:count], ill[:count]])]


def fit_detector(config: DictConfig) -> int:
    """Fit ``config.detector`` into ``runs/NAME/DETECTOR`` and return the command's exit code.

    Raises:
        UserError: a detector of several phases, or one whose data are missing.
    """
    hush()
    name = config.detector.name
    if name not in FITTED:
        raise UserError(f"+phase=fit trains detector={', detector='.join(FITTED)}; {name} has phases of its own")
    folder, settings = PhaseFolder(Path(config.runs_dir) / config.run / name), plain_settings(config)
    if not config.overwrite and can_resume(folder, settings, None) is None:
        say(f"{name}: run {config.run} has fitted it, in {folder.path}; overwrite=true fits it anew")
        return 0
    prepared = prepare_from_config(config)
    data = HeadCTDataModule(prepared.folder, 1, 1, memory_gb=config.memory_gb)
    source = "labelled" if name == "supervised" else "train"
    data.require(source, "validation")
    say(f"{name}: fitting to {len(data.split(source))} scans")
    torch.manual_seed(config.seed)
    train = labelled_halves(data) if source == "labelled" else data.volumes(source)
    if len(train) < FEWEST:
        raise UserError(f"{name} needs at least {FEWEST} {source} scans, and {prepared.folder} holds {len(train)}")
    detector = FITTED[name].fit(train, data.volumes("validation"))
    if config.overwrite:
        shutil.rmtree(folder.path, ignore_errors=True)
    folder.write(describe(settings, prepared.folder, None))
    OmegaConf.save(config, folder.path / "config.yaml", resolve=True)
    detector.save(folder.model)
    folder.write({**describe(settings, prepared.folder, None), "finished": True})
    say(f"{name}: done, in {folder.path}; next: python -m anomaly3d.evaluate detector={name} run={config.run}")
    return 0
