"""``python -m anomaly3d.calibrate site=NAME root=...``: a threshold from a hospital's own healthy scans."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import Done, command


@command("calibrate")
def main(config: DictConfig) -> Done:
    """Score healthy scans of a site and keep its threshold beside the detector of ``run=...``."""
    from anomaly3d.score import scoring_job

    job = scoring_job(config, f"calibrated/{config.site}")

    from anomaly3d.scoring.new_scans import calibrate_site

    return Done(calibrate_site(job, config.site or "", config.false_positive_rate))


if __name__ == "__main__":
    sys.exit(main())
