"""Would more healthy scans help? ``python -m experiments.scores.cross_fitting [--json FILE] RUN...``

Methods that learn at once can be fitted again without a part of the training scans, whose maps then say what is usual
beside those of the validation scans (``FOLDS`` parts). AUC of three scores both ways, on a run's own test scans.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.base import Detector, build_detector
from anomaly3d.evaluation.metrics import auc_of, ranked
from anomaly3d.runs.folder import find_trained
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, RawMaps
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.scan_scores import map_scores
from anomaly3d.statistics.auc import compare_auc
from anomaly3d.system.progress import say
from anomaly3d.system.workers import run_in_threads
from experiments.scores.measure import WORKERS

FOLDS = 4
METHODS = ("pca", "mean_volume", "mirror")
SCORES = ("peak", "exceedance", "clustered")


def raw_maps(detector: Detector, volumes: Tensor, brains: list[np.ndarray]) -> list[RawMaps]:
    """Residuals of volumes ``(N, 1, D, H, W)``."""
    found = []
    for volume, brain in zip(volumes.split(1), brains, strict=True):
        with torch.no_grad():
            reconstruction = detector.examine({"image": volume, "scan_id": []}).reconstruction
        assert reconstruction is not None
        found.append(RawMaps({RESIDUAL: (volume - reconstruction)[0, 0].numpy()}, brain))
    return found


def joined(healthy: Healthy, maps: list[RawMaps]) -> Healthy:
    """What is usual with some scans more."""
    for raw in maps:
        healthy = healthy.plus(raw, 1)
    return healthy


def measure(name: str, config: dict[str, Any], data: HeadCTDataModule) -> dict[str, Any]:
    """AUC by site with the healthy statistics of validation scans, and with training scans beside them."""
    volumes = {split: data.volumes(split) for split in ("train", "validation", "test")}
    brains = {split: [voxels(path) > 0 for path in data.split(split)["brain_mask"]] for split in volumes}

    masks = data.volumes("train", "brain_mask")

    def fitted(keep: np.ndarray) -> Detector:
        detector = build_detector(config)
        detector.fit(volumes["train"][keep], volumes["validation"], masks[keep])
        return detector

    whole, nobody = fitted(np.arange(len(masks))), Healthy(0, np.zeros(()), {}, {}, {})
    usual = {"validation": joined(nobody, raw_maps(whole, volumes["validation"], brains["validation"]))}
    usual["with training"], part = usual["validation"], np.arange(len(volumes["train"])) % FOLDS
    for fold in range(FOLDS):
        held = np.flatnonzero(part == fold)
        again = fitted(np.flatnonzero(part != fold))
        maps = raw_maps(again, volumes["train"][held], [brains["train"][i] for i in held])
        usual["with training"] = joined(usual["with training"], maps)
    test = raw_maps(whole, volumes["test"], brains["test"])
    table, tables = data.split("test").reset_index(drop=True), {}
    for source, healthy in usual.items():
        rows = list(run_in_threads(map_scores, [(raw, healthy) for raw in test], WORKERS, f"{name}, {source}"))
        tables[source] = ranked(pd.concat([table, pd.DataFrame(rows)], axis=1))
    before, after = tables.values()
    labels, subjects = before["label"].astype(int).to_numpy(), before["subject_id"].to_numpy()
    found: dict[str, Any] = {}
    for score in SCORES:
        gain = compare_auc(labels, after[score].to_numpy(), before[score].to_numpy(), subjects)
        by_site = {
            site: {s: auc_of(t[t["site"] == site], score).as_json() for s, t in tables.items()} for site in ("A", "B")
        }
        told = {"value": gain.value, "ci95": [gain.low, gain.high], "p": gain.p}
        found[score] = {"sites": by_site, "gain": told, "n": len(labels)}
        say(f"{name}, {score}: {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")
    return found


def main() -> None:
    """Measure the controls of each run on its own cohort."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    table = {}
    for run in asked.runs:
        data = HeadCTDataModule(prepared_of(find_trained(run)[0], asked.data), 8)
        data.setup()
        configs = {name: configured(name) for name in METHODS}
        table[run.name] = {
            "validation": len(data.split("validation")),
            "training": len(data.split("train")),
            **{name: measure(name, config, data) for name, config in configs.items()},
        }
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=1) + "\n")


def configured(name: str) -> dict[str, Any]:
    """``module`` of ``conf/detector/NAME.yaml``."""
    from hydra import compose, initialize_config_dir

    from anomaly3d.cli import CONF, plain

    with initialize_config_dir(CONF, version_base="1.3"):
        module: dict[str, Any] = plain(compose("train", [f"detector={name}"]))["detector"]["module"]
    return module


if __name__ == "__main__":
    main()
