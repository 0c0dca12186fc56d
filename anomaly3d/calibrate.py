"""``python -m anomaly3d.calibrate site=NAME root=...``: a threshold from a hospital's own healthy scans."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import command


@command("calibrate")
def main(config: DictConfig) -> int:
    """Score healthy scans of a site and keep its threshold beside the detector of ``run=...``."""
    from anomaly3d.scoring import calibrate_site

    return calibrate_site(config)


if __name__ == "__main__":
    sys.exit(main())
