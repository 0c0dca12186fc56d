"""Prepared cohorts and trained runs, small enough for a machine that little can be sent to.

    python -m experiments.gpu.parcel pack data/COHORT/HASH FILE --splits train validation
    python -m experiments.gpu.parcel unpack FILE
    python -m experiments.gpu.parcel run runs/NAME FILE

A cohort's volumes are rounded to 255 grey values (0.4 HU). Scans of other splits are empty until a parcel with theirs
is unpacked beside it. Of a run the last phase comes back, its weights in half precision, as ``tar -xf FILE`` has it.
"""

import argparse
import bz2
import io
import json
import tarfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch

from anomaly3d.preprocessing.outcome import keep, prepared_file, stored_outcome
from anomaly3d.runs.folder import choose_trained
from anomaly3d.system.files import sha256

LEVELS = 255
LEFT = {"image", "brain_mask", "preview", "quality.html", "transform"}  # written anew, or not needed


def rounded(image: np.ndarray) -> np.ndarray:
    """In [-1, 1] -> 0 to ``LEVELS``."""
    return np.rint((image + 1) / 2 * LEVELS).astype(np.uint8)


def packed(folder: Path, scan_id: str) -> bytes:
    """Volume and mask of a scan."""
    image = rounded(np.asarray(nib.load(prepared_file(folder, "image", scan_id)).dataobj))
    mask = np.asarray(nib.load(prepared_file(folder, "brain_mask", scan_id)).dataobj) > 0
    steps = np.diff(image, axis=0, prepend=np.uint8(0))
    return bz2.compress(steps.tobytes() + np.packbits(mask).tobytes())


def unpack_scan(folder: Path, scan_id: str, content: bytes, shape: tuple[int, ...], affine: list[list[float]]) -> None:
    """Write both, and in the outcome what they are now."""
    raw, voxels = bz2.decompress(content), int(np.prod(shape))
    steps = np.frombuffer(raw[:voxels], np.uint8).reshape(shape)
    image = np.cumsum(steps, axis=0, dtype=np.uint8) / np.float32(LEVELS) * 2 - 1
    mask = np.unpackbits(np.frombuffer(raw[voxels:], np.uint8))[:voxels].reshape(shape)
    outcome = stored_outcome(folder, scan_id)
    assert outcome is not None
    files = {kind: digest for kind, digest in outcome.files.items() if kind != "transform"}
    for kind, volume in (("image", image.astype(np.float32)), ("brain_mask", mask)):
        path = prepared_file(folder, kind, scan_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume, np.array(affine)), path)
        files[kind] = sha256(path)
    keep(replace(outcome, files=files), folder)


def pack(folder: Path, file: Path, splits: list[str]) -> None:
    """``folder`` with its recipes and the anatomical template, from the folder that holds ``data``."""
    table = pd.read_csv(folder / "manifest.csv", dtype={"scan_id": str})
    first = nib.load(prepared_file(folder, "image", table["scan_id"][0]))
    told = {"folder": str(folder), "shape": first.shape, "affine": first.affine.tolist()}
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as parcel, ProcessPoolExecutor() as pool:
        add(parcel, "parcel.json", json.dumps(told).encode())
        small = io.BytesIO()
        with tarfile.open(fileobj=small, mode="w:xz", format=tarfile.PAX_FORMAT) as rest:
            for path in sorted(folder.iterdir()):
                if path.name not in LEFT and not path.name.startswith("pseudo"):
                    rest.add(path)
            rest.add(folder.parents[1] / "raw" / folder.parent.name)
            rest.add(folder.parents[1] / "template")
        add(parcel, "rest.tar.xz", small.getvalue())
        wanted = table["scan_id"][table["split"].isin(splits)]
        for scan_id, content in zip(wanted, pool.map(packed, repeat(folder), wanted), strict=True):
            add(parcel, scan_id, content)


def add(parcel: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    parcel.addfile(info, io.BytesIO(content))


def unpack(file: Path) -> None:
    """Into ``data`` of this folder; what lay there already keeps its other scans."""
    with tarfile.open(file) as parcel:
        inside = {name: parcel.extractfile(name).read() for name in parcel.getnames()}  # type: ignore[union-attr]
    told, rest = json.loads(inside.pop("parcel.json")), inside.pop("rest.tar.xz")
    folder, shape = Path(told["folder"]), tuple(told["shape"])
    if not folder.exists():
        with tarfile.open(fileobj=io.BytesIO(rest)) as small:
            small.extractall(filter="data")
        nothing = bz2.compress(bytes(int(np.prod(shape)) + (int(np.prod(shape)) + 7) // 8))
        known = pd.read_csv(folder / "manifest.csv", dtype={"scan_id": str})["scan_id"]
        inside = dict.fromkeys(known, nothing) | inside
    with ProcessPoolExecutor() as pool:
        each = (repeat(folder), inside, inside.values(), repeat(shape), repeat(told["affine"]))
        list(pool.map(unpack_scan, *each, chunksize=8))


def pack_run(run: Path, file: Path) -> None:
    """The last phase of a run that trained one detector, without what is learned again."""
    phase = choose_trained(run, None).folder.path
    state = torch.load(phase / "model.pt", map_location="cpu", weights_only=True)
    small = io.BytesIO()
    torch.save(halved(state), small)
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as parcel:
        for path in sorted(phase.iterdir()):
            if path.is_file() and path.name != "model.pt":
                parcel.add(path)
        for path in sorted(run.glob("*/*/training.csv")):
            parcel.add(path)
        add(parcel, str(phase / "model.pt"), small.getvalue())


def halved(state: object) -> object:
    """Every float tensor in half precision."""
    if isinstance(state, torch.Tensor):
        return state.half() if state.is_floating_point() else state
    return {k: halved(v) for k, v in state.items()} if isinstance(state, dict) else state


def main() -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, words in (("pack", ["folder", "file"]), ("unpack", ["file"]), ("run", ["folder", "file"])):
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word, type=Path)
    commands.choices["pack"].add_argument("--splits", nargs="+", required=True)
    asked = parser.parse_args()
    if asked.command == "pack":
        pack(asked.folder, asked.file, asked.splits)
    elif asked.command == "unpack":
        unpack(asked.file)
    else:
        pack_run(asked.folder, asked.file)


if __name__ == "__main__":
    main()
