"""``python -m anomaly3d.compare 'runs=[kappa-*]'``: a table of AUCs over seeds, their spread, and paired tests."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import Done, command


@command("compare")
def main(config: DictConfig) -> Done:
    """Compare evaluated detectors on the same test scans, each trained with one seed or several."""
    from pathlib import Path

    from anomaly3d.cli import plain
    from anomaly3d.errors import UserError
    from anomaly3d.evaluation.comparison import Comparison, compare_runs

    if not config.out or Path(config.out).is_dir():
        raise UserError(f"out={config.out} must be a file, such as compared.json")
    runs, detectors = (plain(config)[key] for key in ("runs", "detectors"))
    return Done(compare_runs(Comparison(Path(config.runs_dir), runs, detectors, config.score, Path(config.out))))


if __name__ == "__main__":
    sys.exit(main())
