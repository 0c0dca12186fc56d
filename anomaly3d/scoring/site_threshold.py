"""A site's own threshold, from its healthy scans."""

import pandas as pd

from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import copies
from anomaly3d.scoring.calibration import (
    NO_SITES,
    OWN,
    calibrate_anew,
    calibration_folder,
    check_rate,
    healthy_file,
    load_calibration,
)
from anomaly3d.scoring.learned_from import keep_seen_of, refuse_seen
from anomaly3d.scoring.new_scans import ScoringJob, score_new, tell_set_aside
from anomaly3d.scoring.scan_scores import rescore
from anomaly3d.system.files import is_name
from anomaly3d.system.progress import say
from anomaly3d.system.quiet import hush


def calibrate_site(job: ScoringJob, site: str, rate: float | None) -> int:
    """Set a site's threshold from its own healthy scans, the job's, and return the command's exit code.

    What is usual in healthy scans is measured anew with them: each of them is scored by all the others.

    Args:
        rate: share of them that may be flagged; None: as in the run's evaluation.

    Raises:
        UserError: the run has not been evaluated or has learned from the scans, none is usable, one is of unknown age
            where the spread follows age, or the site's name is that of the run's cohort.
    """
    hush()
    stage = job.trained.folder.path
    if site in NO_SITES or not is_name(site):
        raise UserError(
            f"site=NAME is missing: another name than {', '.join(map(repr, NO_SITES))}, which mean what the run keeps "
            "of its own scans"
        )
    if rate is not None:
        check_rate("false_positive_rate", rate)
    own = load_calibration(job.trained, OWN)
    if own is None:
        raise UserError(
            f"{job.trained.source} has no threshold for {job.trained.name}: {job.trained.evaluation} makes one; its "
            "cohort needs a calibration split"
        )
    healthy, before = own
    new = score_new(job)
    if new.table.empty:
        raise UserError(f"no scan can be used: see quality.csv in {new.prepared.folder}")
    refuse_seen(new.prepared.quality.assign(split="calibration"), job.trained)
    ill = new.prepared.table[pd.to_numeric(new.prepared.table["lesion_ml"]) > 0]["scan_id"].tolist()
    if ill:
        raise UserError(
            f"a threshold comes from healthy scans, and the lesion masks of {len(ill)} are not empty (the first is "
            f"{ill[0]}): leave them out"
        )
    if same := copies(new.prepared.quality):
        raise UserError(f"the same voxels are there under several names: {'; '.join(same)}: keep one file of each")
    workers, rate = job.study.workers, before.rate if rate is None else rate
    earlier = rescore(new.table, new.maps, healthy, workers, "scores")
    scans = new.table, new.maps, healthy
    healthy, (made,) = calibrate_anew(site, [before.score], *scans, rate, before.voxel_ml, workers)
    path = calibration_folder(stage) / f"{site}.json"
    healthy.save(healthy_file(stage, site))
    made.save(path, job.trained.digest(), healthy_file(stage, site))
    used = new.prepared.quality["scan_id"].isin(new.table["scan_id"])
    keep_seen_of(site, job.trained, new.prepared.quality[used])
    flagged = before.flags(earlier[before.score])
    known = "has none" if flagged is None else f"{before.threshold:.4g} flags {flagged.mean():.0%}"
    say(f"{len(new.table)} healthy scans of {site}: the run's own threshold {known}")
    if made.possible:
        say(f"threshold of {made.score} for {rate:.0%}: {made.threshold:.4g}, in {path}; use it with site={site}")
    else:
        say(f"too few scans for a threshold at {rate:.0%}, which takes {made.fewest}; p-values work with site={site}")
    return tell_set_aside(new.prepared)
