"""The first leg that all commands share: from a config to a prepared cohort."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from anomaly3d.cohorts.source import find_manifest
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort, prepare_cohort
from anomaly3d.preprocessing.pipeline import Settings


def worker_count(config: DictConfig) -> int:
    """``workers`` of the config, or one a core this process may use."""
    if config.workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not isinstance(config.workers, int) or config.workers < 1:
        raise UserError(f"workers must be a whole number of processes, not {config.workers!r}")
    return config.workers


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
