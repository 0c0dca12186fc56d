"""``python -m anomaly3d.evaluate run=demo``: scores, metrics, figures and the page of a trained run."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import command


@command("evaluate")
def main(config: DictConfig) -> int:
    """Score the test scans of a run and write ``runs/NAME/evaluation``."""
    from anomaly3d.evaluation.run import evaluate_run

    return evaluate_run(config)


if __name__ == "__main__":
    sys.exit(main())
