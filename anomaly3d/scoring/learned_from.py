"""Which scans stand behind a model, kept beside its thresholds, to know one of them again under any name."""

from pathlib import Path

import pandas as pd

from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.folder import Trained
from anomaly3d.scans.manifest import HEALTHY_SPLITS, read_text
from anomaly3d.scoring.calibration import OWN, calibration_folder
from anomaly3d.system.files import written_whole

LEARNED_IN = "learned_in"  # the column that says so of a scan: as one of which split
SEEN = "learned_from.csv"  # name, split and digest of voxels; not in exports, which name no scan
NAMED = 5  # scans that a sentence names


def keep_seen(trained: Trained, prepared: PreparedCohort) -> None:
    """Keep the scans that a model, its score or its threshold was made with."""
    quality = prepared.quality
    rows = quality["scan_id"].isin(prepared.table["scan_id"]) & quality["split"].isin((*HEALTHY_SPLITS, "labelled"))
    with written_whole(calibration_folder(trained.folder.path) / SEEN) as path:
        quality.loc[rows, ["scan_id", "split", "content"]].to_csv(path, index=False)


def keep_seen_of(site: str, trained: Trained, scans: pd.DataFrame) -> None:
    """Keep the scans that a site's threshold was set by, without their names, since it may lie in an exported model;
    ``scans`` as for ``refuse_seen``."""
    with written_whole(seen_of(site, trained)) as path:
        scans.assign(split="calibration", scan_id="")[["scan_id", "split", "content"]].to_csv(path, index=False)


def seen_of(site: str, trained: Trained) -> Path:
    """Where that lies."""
    return calibration_folder(trained.folder.path) / f"{site}.{SEEN}"


def read_seen(trained: Trained, site: str = OWN) -> pd.DataFrame:
    """What ``keep_seen`` kept, and ``keep_seen_of`` of a site; empty of an exported model."""
    paths = [calibration_folder(trained.folder.path) / SEEN, seen_of(site, trained)]
    empty = pd.DataFrame(columns=["scan_id", "split", "content"], dtype=str)
    return pd.concat([empty, *(read_text(path) for path in paths if path.exists())], ignore_index=True)


def learned_in(scans: pd.DataFrame, trained: Trained, site: str) -> dict[str, str]:
    """By ``scan_id`` of scans whose very voxels the run or the site's threshold learned from, in which split; ``scans``
    as for ``refuse_seen``."""
    same = scans[scans["content"] != ""].merge(read_seen(trained, site), on="content", suffixes=("", "_seen"))
    return dict(zip(same["scan_id"], same["split_seen"], strict=True))


def refuse_seen(scans: pd.DataFrame, trained: Trained) -> None:
    """Refuse scans that the run has learned from; those behind its thresholds may calibrate once more.

    Args:
        scans: rows of ``quality.csv``: ``scan_id``, ``split``, ``content``.

    Raises:
        UserError: a scan has the same voxels as one that the detector, its score or, of a test scan, its threshold was
            made with.
    """
    same = scans[scans["content"] != ""].merge(read_seen(trained), on="content", suffixes=("", "_seen"))
    same = same[(same["split"] == "test") | (same["split_seen"] != "calibration")]
    if same.empty:
        return
    rows = same.head(NAMED).to_dict("records")
    named = ", ".join(f"{r['scan_id']} = {r['scan_id_seen']} ({r['split_seen']})" for r in rows)
    more = f" and {len(same) - NAMED} more" if len(same) > NAMED else ""
    raise UserError(
        f"the run has learned from these very voxels: {named}{more}: leave them out, because no number about them "
        "would say anything of other scans"
    )


def namesakes(scans: pd.DataFrame, trained: Trained) -> list[str]:
    """A sentence about scans of one name that are others, where there are some; ``scans`` as for ``refuse_seen``."""
    both = scans.merge(read_seen(trained), on="scan_id", suffixes=("", "_seen"))
    names = sorted(set(both.loc[both["content"] != both["content_seen"], "scan_id"]))
    if not names:
        return []
    some = f"{', '.join(names[:NAMED])}{' ...' if len(names) > NAMED else ''}"
    return [f"{len(names)} scans are called like scans that the run learned from ({some}); their voxels are others."]
