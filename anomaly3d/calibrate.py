"""``python -m anomaly3d.calibrate site=NAME root=...``: a threshold from a hospital's own healthy scans."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from anomaly3d.cli import Done, command
from anomaly3d.errors import UserError


@command("calibrate")
def main(config: DictConfig) -> Done:
    """Score healthy scans of a site and keep its threshold beside the detector of ``run=...``."""
    from anomaly3d.score import scoring_job

    if config.manifest:
        refuse_findings(Path(config.manifest))
    job = scoring_job(config, f"calibrated/{config.site}")

    from anomaly3d.scoring.new_scans import LOCK
    from anomaly3d.scoring.site_threshold import calibrate_site
    from anomaly3d.system.files import locked

    with locked(job.out / LOCK, str(job.out)):
        return Done(calibrate_site(job, config.site or "", config.false_positive_rate))


def refuse_findings(manifest: Path) -> None:
    """Refuse scans that are not healthy.

    Raises:
        UserError: a row is labelled 1, names lesions or is of another group than healthy scans.
    """
    from anomaly3d.scans.manifest import read_manifest

    rows = read_manifest(manifest, files=False)
    other = ~rows["group"].isin(["normal", ""])
    if ill := rows.loc[(rows["label"] == "1") | (rows["lesions"] != "") | other, "scan_id"].tolist():
        raise UserError(
            f"a threshold comes from healthy scans, and {manifest} says of {len(ill)} that they are not (label 1, "
            f"lesions or group; the first is {ill[0]}): leave them out"
        )


if __name__ == "__main__":
    sys.exit(main())
