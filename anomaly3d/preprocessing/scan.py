"""One scan of a manifest, from its files to its prepared files; what is wrong with it is its verdict."""

import hashlib
import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from anomaly3d.errors import PassingTrouble, UnreadableScan, UserError
from anomaly3d.preprocessing.base import Companions, Prepared, Preprocessor
from anomaly3d.preprocessing.outcome import Outcome, Sources, adopted, keep, outcome_file, prepared_file
from anomaly3d.scans.manifest import MASKS
from anomaly3d.scans.nifti import save_volume
from anomaly3d.scans.readers import read_mask
from anomaly3d.scans.volume import Volume
from anomaly3d.system.files import sha256, written_whole
from anomaly3d.system.workers import disk_error


@threadpool_limits.wrap(1)  # the workers share the cores; and the bits do not depend on their number
def prepare_scan(sources: Sources, out: Path, preprocessor: Preprocessor) -> Outcome:
    """Prepare one scan of a manifest into ``out``, unless its files were prepared before under another path.

    The outcome is written last (``keep``), where the scan itself is to blame or praise: else the next call tries again.
    """
    scan_id, source = sources.scan_id, sources.fingerprint(out)
    if stored := adopted(sources, out):
        return stored
    outcome_file(out, scan_id).unlink(missing_ok=True)
    try:
        outcome = prepare_anew(sources, source, out, preprocessor)
    except UserError:
        raise
    except PassingTrouble as error:
        return Outcome(scan_id, str(error), {}, source)
    except Exception as error:  # whatever is wrong with one scan, the others go on
        if isinstance(error, OSError) and isinstance(disk_error(error), UserError):
            raise
        log = out / "logs" / f"{scan_id}.log"
        with written_whole(log) as path:
            path.write_text(traceback.format_exc(), "utf-8")
        reason = f"this program failed on it ({type(error).__name__}): please report it with {log.relative_to(out)}"
        return Outcome(scan_id, reason, {}, source)  # not kept: a mended program tries again
    # files that came or changed meanwhile were not read, or not as they are
    return keep(outcome, out) if sources.fingerprint(out) == source else outcome


def lost_scan(job: tuple[Any, ...], reason: str) -> Outcome:
    """The outcome of a scan that took its worker down or never ended; not kept, so the next call tries again."""
    sources, out = job[:2]
    return Outcome(sources.scan_id, f"this program could not finish it: {reason}", {}, sources.fingerprint(out))


def prepare_anew(sources: Sources, source: str, out: Path, preprocessor: Preprocessor) -> Outcome:
    """Read, prepare and write one scan whose fingerprint is ``source``."""
    scan_id, read_as = sources.scan_id, ""
    try:
        scan = preprocessor.read(Path(sources.image))
        read_as = scan.read_as
        companions = read_companions(sources, scan, preprocessor)
        prepared = preprocessor.prepare(scan, companions)
    except PassingTrouble:
        raise
    except UnreadableScan as error:
        return Outcome(scan_id, str(error), {}, source, read_as=read_as)
    ml = {name: mask.ml() for name, mask in companions.masks.items()}
    brain = prepared.brain_mask.sum() * abs(np.linalg.det((prepared.mni_to_scan @ prepared.affine)[:3, :3])) / 1000
    if brain and (large := next((name for name in ml if ml[name] > brain), None)):
        reason = (
            f"its {large} has {ml[large]:.0f} ml, more than its brain of {brain:.0f}: does it hold all but the lesion?"
        )
        return Outcome(scan_id, reason, {}, source, read_as=read_as)
    files = write_prepared(prepared, out, scan_id)
    return Outcome(
        scan_id,
        "",
        prepared.quality,
        source,
        ml.get("lesion_mask"),
        scan.read_as,
        digest_of(scan, preprocessor.stored),
        files,
        sources.digest(),
        ml.get("segmentation"),
    )


def read_companions(sources: Sources, scan: Volume, preprocessor: Preprocessor) -> Companions:
    """What comes with a scan, read; masks must lie on it.

    Raises:
        UnreadableScan: names the file.
    """
    air = preprocessor.air(scan)
    return Companions(
        brain_mask=read_mask(Path(sources.brain_mask), scan, air) if sources.brain_mask else None,
        masks={name: read_mask(Path(p), scan, air) for name in MASKS if (p := getattr(sources, name))},
        twin=preprocessor.read(Path(sources.twin)) if sources.twin else None,
        transform_fault=load_affine(Path(sources.transform_fault)) if sources.transform_fault else None,
    )


def load_affine(path: Path) -> np.ndarray:
    """A 4x4 matrix from a text file.

    Raises:
        UnreadableScan: anything else.
    """
    try:
        matrix = np.loadtxt(path)
    except ValueError:
        matrix = np.empty(0)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise UnreadableScan(f"its transform_fault {path.name} is not a text file of 4 x 4 numbers")
    return matrix


def write_prepared(prepared: Prepared, out: Path, scan_id: str) -> dict[str, str | int]:
    """Volumes as NIfTI in MNI space and the transform that leads back, each whole or absent; returns their SHA-256."""
    volumes = {"image": prepared.image, "brain_mask": prepared.brain_mask, **prepared.extra}
    for kind, data in volumes.items():
        save_volume(prepared_file(out, kind, scan_id), data, prepared.affine)
    with written_whole(prepared_file(out, "transform", scan_id)) as path:
        path.write_text(json.dumps({"mni_to_scan": prepared.mni_to_scan.tolist()}))
    if prepared.preview is not None:
        with written_whole(out / "preview" / f"{scan_id}.png") as path:
            Image.fromarray(prepared.preview).save(path)
    return {kind: sha256(prepared_file(out, kind, scan_id)) for kind in (*volumes, "transform")}


def read_transform(folder: Path, scan_id: str) -> np.ndarray:
    """MNI mm to the scan's world mm, 4x4, of a prepared scan."""
    return np.array(json.loads((folder / "transform" / f"{scan_id}.json").read_text())["mni_to_scan"])


def digest_of(scan: Volume, stored: type[np.generic] = np.int16) -> str:
    """16 hex digits of the voxels; where ``stored`` are whole numbers, rounded to such."""
    found = hashlib.sha256(repr(scan.data.shape).encode())
    for part in scan.data:
        found.update((np.rint(part).astype("<i2") if stored is np.int16 else part.astype("<f4")).tobytes())
    return found.hexdigest()[:16]
