"""``python -m anomaly3d.compare 'detectors={ours: [demo], pca: [demo/pca]}'``: AUCs over seeds, and paired tests."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import Done, command


@command("compare")
def main(config: DictConfig) -> Done:
    """Compare evaluated detectors on the same test scans, each trained with one seed or several."""
    from pathlib import Path

    from anomaly3d.cli import plain
    from anomaly3d.evaluation.comparison import Comparison, compare_runs

    detectors = plain(config)["detectors"]
    return Done(compare_runs(Comparison(Path(config.runs_dir), detectors, config.score, Path(config.out))))


if __name__ == "__main__":
    sys.exit(main())
