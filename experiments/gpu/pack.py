"""Reconstructions of a run's scans in few small files, for work on scores where there is no GPU.

``python -m experiments.gpu.pack FOLDER OUT`` reads a detector's folder in ``runs/NAME/evaluation`` and writes the
reconstructions of its test, calibration and validation scans, in steps of 2/255.
``unpack`` gives them back.
"""

import argparse
import lzma
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from anomaly3d.scans.nifti import voxels

FILES = 6


def pack_file(paths: list[Path], out: Path) -> int:
    """One file of some scans; returns its size in bytes."""
    volumes = np.stack([np.rint((voxels(p) + 1) * 127.5) for p in paths]).astype(np.uint8)
    steps = np.diff(volumes, axis=1, prepend=np.uint8(0))
    packed = np.frombuffer(lzma.compress(steps.tobytes(), preset=1), np.uint8)
    ids = np.array([p.name.removesuffix(".nii.gz") for p in paths])
    np.savez(out, ids=ids, shape=np.array(volumes.shape), packed=packed)
    return out.stat().st_size


def unpack(path: Path) -> dict[str, np.ndarray]:
    """Scan IDs and their reconstructions ``(D, H, W)`` in [-1, 1]."""
    with np.load(path) as stored:
        steps = np.frombuffer(lzma.decompress(stored["packed"].tobytes()), np.uint8).reshape(stored["shape"])
        volumes = np.cumsum(steps, axis=1, dtype=np.uint8)
        return {str(i): v.astype(np.float32) / 127.5 - 1 for i, v in zip(stored["ids"], volumes, strict=True)}


def main() -> None:
    """Pack a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    paths: list[Path] = []
    for split in ("", "calibration", "validation"):
        paths += sorted((arguments.folder / split / "reconstruction").glob("*.nii.gz"))
    with ProcessPoolExecutor() as pool:
        jobs = [
            pool.submit(pack_file, paths[k::FILES], arguments.out / f"reconstructions-{k}.npz") for k in range(FILES)
        ]
        print(len(paths), "reconstructions,", sum(job.result() for job in jobs), "bytes")


if __name__ == "__main__":
    main()
