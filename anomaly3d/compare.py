"""``python -m anomaly3d.compare 'detectors={ours: [demo], pca: [demo/pca]}'``: AUCs over seeds, and paired tests."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import command


@command("compare")
def main(config: DictConfig) -> int:
    """Compare evaluated detectors on the same test scans, each trained with one seed or several."""
    from anomaly3d.evaluation.comparison import compare_runs

    return compare_runs(config)


if __name__ == "__main__":
    sys.exit(main())
