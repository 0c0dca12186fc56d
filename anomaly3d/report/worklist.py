"""The page of new scans: a worklist by p-value, what is known of each scan in words, and a viewer in its own space.

It is made from what lies in the folder of results, so it also holds the scans of earlier calls.
"""

import base64
import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from anomaly3d.evaluation.metrics import whole_percent
from anomaly3d.preprocessing.base import Preprocessor
from anomaly3d.preprocessing.scan import read_transform
from anomaly3d.report.build import view_of
from anomaly3d.report.contact_sheet import as_text, in_limits
from anomaly3d.report.figures import capital, words_of
from anomaly3d.report.page import render
from anomaly3d.report.viewer import BUDGET, SCANS, Shown, eight_bits, pack, thumbnail
from anomaly3d.runs.folder import Trained
from anomaly3d.scans.manifest import read_text
from anomaly3d.scans.nifti import voxels
from anomaly3d.scans.readers import read_image
from anomaly3d.scans.volume import Volume, resample
from anomaly3d.scoring.calibration import Calibration
from anomaly3d.scoring.familiarity import UNLIKE
from anomaly3d.scoring.learned_from import LEARNED_IN
from anomaly3d.scoring.new_scans import IN_SCOPE, JUDGED, OF_PHANTOMS, PICTURES, Scored, ScoringJob
from anomaly3d.system.files import written_whole
from anomaly3d.system.progress import say, track

CLUSTERS = "clusters.csv"  # beside them, where clusters are told apart: name, ml, p_value, peak ..., and x, y, z in mm
COLUMNS = ("name", "ml", "p_value", "peak", "mean_value")  # of them in the page
VOXELS = 1.5e6  # of a scan in the page, which makes thin slices thicker
NO_MASKS = {"lesion_mask": "", "mass_effect_mask": ""}  # of new scans nothing true is known
TEXT = (
    "scan_id",
    "verdict",
    "reasons",
    "model",
    "source",
    IN_SCOPE,
    UNLIKE,
    LEARNED_IN,
    *JUDGED,
)  # scores.csv: others are scores


def present_scored(scored: Scored, job: ScoringJob, images: bool) -> None:
    """Write ``report.html`` into the folder of results.

    Args:
        images: whether scans are in it.
    """
    if images:
        keep_pictures(scored, job)
    locked = scored.known[1] if scored.known else None
    path = job.out / "report.html"
    write_worklist(path, Worklist(job.trained, job.study.preprocessor, locked, images))
    say(f"report: {path.resolve()}")


def keep_pictures(scored: Scored, job: ScoringJob) -> None:
    """Write what the page shows of each scan of this call, as ``PICTURES`` beside its maps."""
    new, healthy = scored.new, scored.known[0] if scored.known else None
    rows = new.prepared.table.set_index("scan_id", drop=False)
    for scan in track(new.maps, len(new.maps), "pictures"):
        shown = Shown(rows.loc[scan.scan_id].to_dict() | NO_MASKS, scan, healthy)
        to_scan = read_transform(new.prepared.folder, scan.scan_id)
        original = read_image(Path(new.images[scan.scan_id]))
        volumes = pack_on_scan(shown, original, to_scan, job.study.preprocessor)
        with written_whole(job.out / scan.scan_id / PICTURES) as path:
            path.write_text(json.dumps({"thumbnail": thumbnail(shown), "volumes": volumes}))


def pack_on_scan(
    shown: Shown, original: nib.nifti1.Nifti1Image, mni_to_scan: np.ndarray, preprocessor: Preprocessor
) -> dict[str, Any]:
    """``pack`` with its small grid laid on the scan, and the scan itself under ``own``: shape, affine, where to look
    first, and base64 of the gzipped bytes of its values in the preprocessor's window, axes to the right, front, top."""
    packed = pack(shown)
    small = mni_to_scan @ np.vstack([packed["affine"], [0, 0, 0, 1]])
    upright = nib.as_closest_canonical(original)  # NiiVue counts voxels along the axes so
    values, affine = coarser(np.asarray(upright.dataobj, np.float32), upright.affine)
    image, grid = voxels(shown.row["image"]), np.vstack([packed["affine"], [0, 0, 0, 1]])
    there = resample(Volume(values, affine), grid, image.shape, mni_to_scan)
    inside = (voxels(shown.row["brain_mask"]) > 0) & (np.abs(image) < 1)  # the window's ends stand for more
    unit = preprocessor.comparable(values, there[inside], image[inside])
    data = gzip.compress(eight_bits(unit).tobytes(order="F"), 9, mtime=0)
    place = nib.affines.apply_affine(np.linalg.inv(affine) @ small, packed["finding"])
    own = {
        "shape": list(values.shape),
        "affine": np.round(affine[:3], 4).tolist(),
        "finding": np.rint(place).astype(int).clip(0, np.array(values.shape) - 1).tolist(),
        "data": base64.b64encode(data).decode(),
    }
    return packed | {"affine": np.round(small, 4)[:3].tolist(), "own": own}


def coarser(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A scan ``(X, Y, Z)`` by means over blocks, its finest axes first, until it has at most ``VOXELS``."""
    spacing, steps = np.linalg.norm(affine[:3, :3], axis=0), np.ones(3, int)
    while np.prod(np.array(values.shape) // steps) > VOXELS:
        steps[(spacing * steps).argmin()] += 1
    x, y, z = np.array(values.shape) // steps
    a, b, c = steps
    blocks = values[: x * a, : y * b, : z * c].reshape(x, a, y, b, z, c)
    middle = np.diag([*steps, 1.0])
    middle[:3, 3] = (steps - 1) / 2
    return blocks.mean((1, 3, 5)), affine @ middle


@dataclass(frozen=True)
class Worklist:
    """What the page says of all its scans: the detector, how scans are prepared, its calibration, None for none, and
    whether scans are shown."""

    trained: Trained
    preprocessor: Preprocessor
    locked: Calibration | None
    images: bool


def write_worklist(path: Path, about: Worklist) -> None:
    """Write the page of the results beside ``path``."""
    table = in_order(read_text(path.parent / "scores.csv"))
    quality = read_text(path.parent / "quality.csv").set_index("scan_id").to_dict("index")
    kept = read_pictures(path.parent, table["scan_id"], about.images)
    columns, scans = worklist_rows(table, about.preprocessor, quality, kept, path.parent)
    volumes = fitting({scan_id: pictures["volumes"] for scan_id, pictures in kept.items()})
    for scan in scans:
        file = path.parent / scan["id"] / CLUSTERS
        scan["clusters"] = cluster_rows(file, volumes.get(scan["id"]))
        if file.exists() and not scan["clusters"]:
            scan["sentences"].append("No cluster lies beyond the voxel threshold.")
    render(
        path,
        "worklist.html",
        volumes,
        view_of(about.preprocessor, about.locked),
        own=True,
        standardised=about.locked is not None,
        name=about.trained.name,
        title=about.trained.lineage["title"],
        source=about.trained.source,
        verdict=in_short(table),
        threshold=threshold_text(about.locked, bool(differing(table))),
        phantoms=f"{capital(OF_PHANTOMS)}." if about.trained.lineage["synthetic"] else "",
        unlike=bool((table[UNLIKE].astype(bool) & (table[IN_SCOPE] == "True")).any()),
        outside=bool((table[IN_SCOPE] == "False").any()),
        discoveries="discovery" in columns,
        images=about.images,
        pictures=bool(kept),
        columns=columns,
        scans=scans,
        ranked=(table["p_value"] != "").any(),
        cluster_columns=["Cluster", "ml", "p", "peak, healthy spreads", mean_of(about.preprocessor)],
        made=[{"phase": about.trained.stage, **about.trained.lineage}],
    )


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """``scores.csv`` with all columns of ``TEXT``: the smallest p-value first, then the highest score; scans outside of
    what the detector was made for after those, scans without a score last."""
    table = table.reindex(columns=list(dict.fromkeys([*table, *TEXT])), fill_value="")
    place = table[IN_SCOPE].map({"True": 0, "False": 1}).fillna(2)
    score = pd.to_numeric(table["score"].where(table["score"] != "", table.get("total", "")), errors="coerce")
    keys = pd.DataFrame({"place": place, "p": pd.to_numeric(table["p_value"], errors="coerce"), "score": -score})
    return table.loc[keys.sort_values(["place", "p", "score"]).index].reset_index(drop=True)


def read_pictures(out: Path, scan_ids: pd.Series, images: bool) -> dict[str, dict[str, Any]]:
    """What ``keep_pictures`` left of these scans, by ``scan_id``; nothing where scans are not to be shown."""
    files = {scan_id: out / scan_id / PICTURES for scan_id in scan_ids} if images else {}
    return {scan_id: json.loads(file.read_text()) for scan_id, file in files.items() if file.exists()}


def fitting(volumes: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first of the volumes, at most ``SCANS`` and together at most ``BUDGET`` characters."""
    sizes = np.cumsum([len(made["data"]) + len(made["own"]["data"]) for made in volumes.values()])
    return dict(list(volumes.items())[: min(SCANS, int((sizes <= BUDGET).sum()))])


def outcome(row: Mapping[Any, Any]) -> str:
    """What is known of a scan, in a word or two."""
    if row["verdict"] == "unreadable":
        return "cannot be used"
    if row["verdict"] == "rejected":
        return "set aside"
    if row[LEARNED_IN]:
        return "learned from"
    if row["p_value"] == "":
        return "scored"
    return {"True": "flagged", "False": "below threshold"}.get(row["flagged"], "no threshold")


def sentences(row: Mapping[Any, Any]) -> list[str]:
    """The same in sentences."""
    score = row["score_name"] or "total"
    value = row["score"] or row.get("total", "")
    rated = f"{capital(words_of(score))} {float(value):.4g}" if value else ""
    if row["verdict"] == "unreadable":
        return [f"It cannot be used: {row['reasons']}."]
    if row["verdict"] == "rejected":
        said = [f"Quality control sets it aside: {row['reasons']}."]
        if rated:
            said.append(f"{rated}, outside of what the detector was made for: no threshold holds for it.")
        return said
    if row["p_value"]:
        p = float(row["p_value"])
        rarely = f"a healthy scan scores as high with a chance of {100 * p:.2g} % at most"
        said = [f"{rated}; {'most healthy scans score as high' if p > 0.5 else rarely} (p = {p:.3f})."]
        if row["discovery"] == "True":
            said.append("It also stands out among all scans of its call.")
    elif row[LEARNED_IN]:
        said = [f"{rated}; the run learned from these very voxels, in its {row[LEARNED_IN]} split: no p-value holds."]
    elif row["site"]:
        said = [f"{rated}; its age is not known, and the threshold is for people of known age."]
    else:
        said = [f"{rated}; no threshold is known."]
    if row["reasons"]:
        said.append(f"Quality control would set it aside, and was {row['reasons']}.")
    if row[UNLIKE]:
        said.append(f"It is unlike the training scans, so its score may tell of the scanner: {row[UNLIKE]}.")
    return said


def in_short(table: pd.DataFrame) -> str:
    """How many scans came out how, in a sentence."""
    counts = table.apply(outcome, axis=1).value_counts()
    words = {
        "below threshold": "below the threshold",
        "set aside": "set aside by quality control",
        "no threshold": "scored, too few healthy scans to flag any",
        "learned from": "without a p-value, since the run learned from it",
    }
    order = ("flagged", "below threshold", "no threshold", "scored", "learned from", "set aside", "cannot be used")
    parts = [f"{counts[name]} {words.get(name, name)}" for name in order if name in counts]
    return f"{len(table)} {'scan' if len(table) == 1 else 'scans'}: {', '.join(parts)}."


def differing(table: pd.DataFrame) -> list[str]:
    """In which of score and site, by which they are judged, the scans of several calls differ."""
    return [c for c in ("score_name", "site") if table[c][table[c] != ""].nunique() > 1]


def threshold_text(locked: Calibration | None, several: bool = False) -> str:
    """Which threshold flags, and on whom it was set.

    Args:
        several: earlier calls flagged by others.
    """
    if locked is None:
        return "No threshold is known: the run's cohort has no calibration split, or it has not been evaluated."
    whose = "the run's own calibration split" if locked.site == "own" else f"the site {locked.site}"
    count = f"{len(locked.scores)} healthy scan{'s' * (len(locked.scores) != 1)} of {whose}"
    rate = whole_percent(locked.rate)
    if not locked.possible:
        return f"P-values are among {count}; a threshold at {rate} takes {locked.fewest} subjects."
    first = "In the last call, flagged are scans" if several else "Flagged are scans"
    flagged = f"{first} whose {words_of(locked.score)} is at least {locked.threshold:.4g}"
    set_on = f"{flagged}, which {rate} of healthy scans may reach; set, like the p-values, on {count}."
    return f"{set_on} Scans of earlier calls keep what theirs said." if several else set_on


def worklist_rows(
    table: pd.DataFrame,
    preprocessor: Preprocessor,
    quality: Mapping[Any, Mapping[Any, str]],
    kept: Mapping[str, Mapping[str, Any]],
    out: Path,
) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns of the table of scans, and its rows in their order.

    Args:
        quality: rows of ``quality.csv`` and ``kept`` pictures, by ``scan_id``.
        out: where each scan's maps are.
    """
    said = ["discovery"] if (table["discovery"] != "").any() else []
    said += differing(table)
    said += [UNLIKE] if (table[UNLIKE] != "").any() else []  # the longest text stands last
    scores = [str(c) for c in table if c not in TEXT]
    chosen = sorted(set(table["score_name"]) - {""})
    shown = ["score"] if chosen and chosen != ["total"] else []
    numbers = [c for c in ("p_value", *shown, *scores) if (table[c] != "").any()]
    rows = []
    for row in table.to_dict("records"):
        known = quality.get(row["scan_id"], {})
        told = sentences(row)
        if read_as := known.get("read_as"):
            told.append(f"{capital(read_as)}.")
        rows.append(
            {
                "id": row["scan_id"],
                "title": f"{row['scan_id']} · {outcome(row)}"
                + (f" · p = {float(row['p_value']):.3f}" if row["p_value"] else ""),
                "maps": any((out / row["scan_id"]).glob("*.nii.gz")),
                "flagged": row["flagged"] == "True",
                "thumbnail": kept.get(row["scan_id"], {}).get("thumbnail", ""),
                "sentences": told,
                "details": quality_rows(known, preprocessor) if row["verdict"] != "unreadable" else [],
                "cells": [
                    row["scan_id"],
                    outcome(row) + (f": {row['reasons']}" if row["reasons"] else ""),
                    *(f"{float(row[c]):.4g}" if row[c] else "" for c in numbers),
                    *({"True": "yes", "False": "no"}.get(row[c], row[c]) for c in said),
                ],
            }
        )
    return [
        "scan_id",
        "outcome",
        *(chosen[0] if c == "score" and len(chosen) == 1 else c for c in numbers),
        *said,
    ], rows


def mean_of(preprocessor: Preprocessor) -> str:
    """What ``mean_value`` of a cluster is, which is of the scan as it is stored."""
    return f"mean, {preprocessor.unit}" if preprocessor.stored is np.int16 else "mean signal"


def cluster_rows(file: Path, volumes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """A scan's clusters in the file's order, each with its cells, and its centre as a voxel of the scan in the page,
    empty where that is not in it."""
    rows = []
    for row in read_text(file).to_dict("records") if file.exists() else []:
        place = []
        if volumes:
            affine, shape = np.vstack([volumes["own"]["affine"], [0, 0, 0, 1]]), np.array(volumes["own"]["shape"])
            centre = nib.affines.apply_affine(np.linalg.inv(affine), [float(row[axis]) for axis in "xyz"])
            place = np.rint(centre).astype(int).clip(0, shape - 1).tolist()
        numbers = (row.get(column, "") for column in COLUMNS[1:])
        cells = [row["name"], *(f"{float(number):.3g}" if number else "" for number in numbers)]
        rows.append({"cells": cells, "place": place})
    return rows


def quality_rows(known: Mapping[Any, str], preprocessor: Preprocessor) -> list[dict[str, Any]]:
    """A scan's quality numbers with their limits, and whether they are out of them."""
    found = []
    for name, meaning in preprocessor.reasons.items():
        value = float(known.get(name) or "nan")
        found.append(
            {
                "name": name,
                "meaning": meaning,
                "value": as_text(value) or "not measured",
                "limits": in_limits(preprocessor.quality.get(name, (None, None))),
                "out": not preprocessor.passes(name, value),
            }
        )
    return found
