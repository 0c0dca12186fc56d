"""Images whose voxels lie in other files than their header: NIfTI pairs, MetaImage ``.mhd``, NRRD ``.nhdr``."""

import os
import re
from pathlib import Path, PurePath

from anomaly3d.errors import UnreadableScan

PAIRS = {".hdr": (".img", ".img.gz"), ".HDR": (".IMG", ".IMG.GZ")}
NAMES = re.compile(r"(?:elementdatafile\s*=|data ?file:)\s*(.+)", re.IGNORECASE)
NAMING = (".mhd", ".mha", ".nhdr", ".nrrd")
LONGEST = 1 << 20  # bytes of a header, with a list of slices


def voxel_files(path: Path) -> list[Path]:
    """The files in a header's folder that hold its voxels; none for an image in one file."""
    named = [path.parent / name for name in named_files(path) if is_inside(name)]
    for suffix, partners in PAIRS.items():
        if path.name.endswith((suffix, f"{suffix}.gz")):
            named += [path.with_name(path.name[: path.name.rindex(suffix)] + end) for end in partners]
    return [file for file in named if file.is_file()]


def is_inside(name: str) -> bool:
    """Whether a file that a header names lies in its folder or below."""
    return not PurePath(name).is_absolute() and ".." not in PurePath(name).parts


def refuse_elsewhere(path: Path) -> None:
    """Refuse a header whose voxels lie outside of its own folder.

    Raises:
        UnreadableScan: says it.
    """
    if not all(map(is_inside, named_files(path))):
        raise UnreadableScan("its header names voxels outside of its own folder: put both into one folder")


def named_files(path: Path) -> list[str]:
    """What a MetaImage or NRRD header says where its voxels are: a file, a list of files, or a pattern and a range."""
    if path.suffix.lower() not in NAMING:
        return []
    try:
        with path.open("rb") as file:
            lines = [os.fsdecode(line.strip()) for line in file.read(LONGEST).split(b"\n")]
    except OSError:
        return []
    for number, line in enumerate(lines):
        if not line:
            break  # behind it NRRD has its voxels
        found = NAMES.fullmatch(line)
        if not found:
            continue
        said = found[1].strip()
        if said.upper() == "LOCAL":
            break
        if said.split()[0].upper() == "LIST":
            return [name for name in lines[number + 1 :] if name]
        return expanded(said)
    return []


def expanded(said: str) -> list[str]:
    """A file's name, or those of a pattern such as ``slice%03d.raw 1 40 1``."""
    pattern, *numbers = said.split()
    if "%" not in pattern or len(numbers) < 3:
        return [said]
    try:
        first, last, step = map(int, numbers[:3])
        return [pattern % k for k in range(first, last + (1 if step > 0 else -1), step)]
    except (ValueError, TypeError):
        return [said]
