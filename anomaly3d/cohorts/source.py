"""From ``conf/dataset`` to a manifest on disk."""

from pathlib import Path

from omegaconf import DictConfig

from anomaly3d.cohorts.folder import folder_manifest
from anomaly3d.errors import UserError


def find_manifest(dataset: DictConfig, data_dir: Path, workers: int) -> Path:
    """The manifest of a dataset config, made first where the dataset is a phantom or a folder.

    Raises:
        UserError: the config does not say where the scans are.
    """
    if dataset.kind == "phantom":
        from anomaly3d.cohorts.phantom.cohort import make_cohort

        return make_cohort(
            dataset.name,
            dict(dataset.counts),
            dataset.seed,
            dataset.matrix,
            dataset.slices,
            data_dir,
            workers,
            dataset.purpose,
            dataset.twins,
            dataset.keep_raw,
        )
    if dataset.kind == "folder":
        shares = {str(split): float(share) for split, share in dataset.shares.items()}
        root = Path(dataset.root) if dataset.root else None
        label = "" if dataset.label is None else str(dataset.label)
        scans = [dataset.scans] if isinstance(dataset.scans, str) else list(dataset.scans)
        return folder_manifest(root, scans, label, shares, dataset.name, data_dir)
    if dataset.kind == "manifest":
        if not dataset.manifest:
            raise UserError("no manifest: give its path with dataset.manifest=...")
        return Path(dataset.manifest)
    raise UserError(f"dataset.kind must be phantom, folder or manifest, not {dataset.kind!r}")
