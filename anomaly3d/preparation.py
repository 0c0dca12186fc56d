"""The first leg that all commands share: from a config to a prepared cohort."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from anomaly3d.cohorts.source import find_manifest
from anomaly3d.preprocessing.cohort import PreparedCohort, prepare_cohort
from anomaly3d.preprocessing.pipeline import Settings


def worker_count(config: DictConfig) -> int:
    """``workers`` of the config, or one a core this process may use."""
    return int(config.workers or len(os.sched_getaffinity(0)))


def prepare_from_config(config: DictConfig) -> PreparedCohort:
    """Make or find the manifest of ``config.dataset`` and prepare what is missing of it.

    Raises:
        UserError: config, manifest or disk.
    """
    plain = OmegaConf.to_container(config.preprocessing, resolve=True)
    assert isinstance(plain, dict)
    settings = Settings.from_config(plain)
    data_dir = Path(config.data_dir)
    workers = worker_count(config)
    return prepare_cohort(find_manifest(config.dataset, data_dir, workers), settings, data_dir, workers)
