"""``+phase=fit``: a detector of one stage, fitted to the healthy volumes of the training split."""

import shutil
from pathlib import Path

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
from anomaly3d.volume_store import read_volume


def labelled_halves(data: HeadCTDataModule) -> torch.Tensor:
    """Labelled volumes and their lesion masks ``(N, 2, D, H, W)``, empty where there is no mask file.

    As many healthy as abnormal ones, the healthy first, whatever quality control left of them.
    """
    rows = data.split("labelled").reset_index(drop=True)
    healthy, ill = (rows.index[rows["label"] == label] for label in "01")
    count = min(len(healthy), len(ill))
    chosen = [*healthy[:count], *ill[:count]]
    images = data.volumes("labelled")[chosen]
    masks = torch.zeros_like(images)
    for place, path in enumerate(rows["lesion_mask"][chosen]):
        if path:
            masks[place, 0] = torch.from_numpy(read_volume(path))
    return torch.cat([images, masks], 1)


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
