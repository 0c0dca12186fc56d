"""``python -m anomaly3d.score 'scans=[a.nii.gz]'``: anomaly scores and maps of new scans, on their own grids."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import command


@command("score")
def main(config: DictConfig) -> int:
    """Score new scans with the detector of ``run=...`` and write maps beside the scores."""
    from anomaly3d.scoring import score_scans

    return score_scans(config)


if __name__ == "__main__":
    sys.exit(main())
