"""Which images of a study are the scan: the axial, soft-tissue, non-contrast series that shows most of the head."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.dicom_headers import Header

FEWEST = 8  # slices of a scan
CT_CLASSES = ("CT Image Storage", "Enhanced CT Image Storage", "Legacy Converted Enhanced CT Image Storage")
MODALITIES = ("MR", "PT", "SR", "CR", "DX", "US", "XA", "NM", "OT", "PR", "RTSTRUCT", "SEG", "KO", "SC", "DOC")
CAPTURE = "Secondary Capture Image Storage"  # old converters write whole series as such
NOT_HU = {"PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "IODINE", "VNC", "MIP", "MINIP", "VRT", "SSD", "SUBTRACT"}
SCOUT = re.compile(r"scout|topogram|localizer|localiser|surview|scanogram")
OTHER_PARTS = re.compile(
    r"spine|cervi|neck|hals|chest|thorax|abdom|pelvi|orbit|sinus|facial|maxillo|dental|temporal bone"
)
HEAD = re.compile(r"head|brain|skull|cran|schädel|schaedel|kopf|hirn|tête|cerebr")
SHARP_WORDS = re.compile(r"\b(bone|bones|knochen|osseous|hueso|osso|os|sharp|hrct|hi ?res)")
SHARP_NAMES = re.compile(r"BONE|EDGE|LUNG|SHARP|DETAIL|^FC(3|5|8)\d|^(D|E|L|YC|YD|YE)$")
SIEMENS = re.compile(r"^[A-Z][A-Z]?(\d\d)")  # H31s, Hr60h, J70h: from 50 on they show bone
SIEMENS_SHARP = 50
WITHOUT = re.compile(r"without|w/o|non.?con|no contrast|native?|nativ|pre.?con|plain|unenhanced|ohne|nect|ncct|sans")
WITH = re.compile(r"angio|\bcta\b|\bpost\b(?!.?op)|post.?con|contrast|\bcect\b|\bce\b|\+c\b|\bkm\b|venous|arteri")
NO_AGENT = ("", "none", "no", "0", "n/a", "na", "without", "nein", "false")
FULL = 110.0  # mm of coverage: less is a fragment
HEAD_LENGTH = 160.0  # mm: what a series shows beyond is neck
THICK = 5.5  # mm
GAP = 1.5  # times the usual step
DIRECTION = 0.005  # by which the numbers of one direction may differ from slice to slice
STRAIGHT = 1.0  # mm that slices may lie beside one another
TOUCHING = 0.05  # mm between slices that are one place


@dataclass(frozen=True)
class Stack:
    """Files of one series that may lie on one another: same size, direction and kind."""

    files: tuple[Header, ...]

    @property
    def first(self) -> Header:
        return self.files[0]

    @property
    def count(self) -> int:
        """Slices."""
        return sum(header.frames for header in self.files)

    @property
    def normal(self) -> np.ndarray:
        """Direction of the slices' normal; zeros where it is unknown."""
        along = np.array(self.first.orientation or (0.0,) * 6)
        return np.cross(along[:3], along[3:])

    @property
    def places(self) -> np.ndarray:
        """Millimetres of every slice along the normal, in the files' order."""
        return np.concatenate([header.positions for header in self.files]) @ self.normal

    @property
    def coverage(self) -> float:
        """Millimetres from the first to the last slice."""
        return float(np.ptp(self.places)) if self.placed else 0.0

    @property
    def placed(self) -> bool:
        """Whether every slice says where it lies."""
        return bool(self.normal.any()) and all(len(header.positions) for header in self.files)

    @property
    def step(self) -> float:
        """The usual distance of slices in mm."""
        return float(np.median(np.diff(np.sort(self.places)))) if self.placed and self.count > 1 else 0.0

    @property
    def plane(self) -> str:
        """How the slices lie."""
        across = np.abs(self.normal)
        return "axial" if across[2] > 0.7 else "sagittal" if across[0] > 0.7 else "coronal"

    @property
    def sharp(self) -> bool:
        """Whether it was made to show bone."""
        name = self.first.kernel
        siemens = SIEMENS.match(name)
        if siemens:
            return int(siemens[1]) >= SIEMENS_SHARP
        return bool(SHARP_NAMES.search(name) or SHARP_WORDS.search(self.first.words))

    @property
    def with_contrast(self) -> bool:
        """Whether contrast agent was given, by the words of its series or, where those are silent, by its own field."""
        if WITHOUT.search(self.first.words):
            return False
        return bool(WITH.search(self.first.words)) or self.first.contrast not in NO_AGENT

    def __str__(self) -> str:
        """Without free text, which may name the patient."""
        number = "a series" if self.first.number is None else f"series {self.first.number}"
        plane = f"{self.plane} " if self.placed and self.count > 1 else ""
        step = f" {self.step:.1f} mm apart" if self.step else ""
        return f"{number} ({self.count} {plane}slice{'s' if self.count > 1 else ''}{step})"


def stacks_of(headers: Sequence[Header]) -> list[Stack]:
    """The files of a study by series, and within one by what cannot lie on one another."""
    found: dict[tuple, list[Header]] = defaultdict(list)
    directions: list[tuple[float, ...]] = []
    for h in headers:
        direction = next((d for d in directions if alike(d, h.orientation)), h.orientation)
        directions += [direction] if direction is h.orientation else []
        alone = h.uid if h.frames > 1 else ""
        scout = "LOCALIZER" in h.image_type
        found[h.series, h.kind, h.shape, direction, tuple(np.round(h.spacing, 3)), alone, scout].append(h)
    return [part for files in found.values() for part in untangle(Stack(tuple(files)))]


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two directions are one, written by a scanner with its rounding."""
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=DIRECTION))


def untangle(stack: Stack) -> list[Stack]:
    """A series without the copies of its files, and by acquisition where two of them share places."""
    unique = {header.uid or str(header.path): header for header in reversed(stack.files)}
    stack = Stack(tuple(reversed(unique.values())))
    if not doubled(stack):
        return [stack]
    parts: dict[int, list[Header]] = defaultdict(list)
    for header in stack.files:
        parts[header.acquisition].append(header)
    return [Stack(tuple(files)) for _, files in sorted(parts.items())]


def doubled(stack: Stack) -> int:
    """How many slices lie where another does."""
    if not stack.placed or stack.count < 2:
        return 0
    return int((np.diff(np.sort(stack.places)) < TOUCHING).sum())


def unfit(stack: Stack) -> str:
    """Why a stack cannot be the scan; empty for one that can."""
    first = stack.first
    if first.modality not in ("CT", ""):
        return f"not CT but {first.modality if first.modality in MODALITIES else 'something else'}"
    if first.kind not in (*CT_CLASSES, CAPTURE, ""):
        return f"no images ({first.kind})"
    if first.colours != 1 or (first.kind == CAPTURE and (not stack.placed or first.bits < 16)):
        return "a secondary capture, pictures of a screen"
    if "LOCALIZER" in first.image_type or SCOUT.search(first.words):
        return "a scout"
    if NOT_HU & {word for part in first.image_type for word in re.split(r"[^A-Z]+", part)}:
        return "a map or projection, not CT numbers"
    if stack.count < FEWEST:
        return f"only {stack.count} slice{'s' if stack.count > 1 else ''}"
    if not stack.placed or len(first.spacing) != 2:
        return "without the places of its slices"
    if stack.with_contrast:
        return "with contrast agent"
    return ""


def preferences(stack: Stack) -> dict[str, bool]:
    """What the scan should be, most important first, in words for the one who is passed over."""
    words = stack.first.words
    return {
        "not of the head": not OTHER_PARTS.search(words) or bool(HEAD.search(words)),
        "a part of the head only": stack.coverage >= FULL,
        f"{stack.plane}, not axial": stack.plane == "axial",
        "a sharp kernel for bone": not stack.sharp,
        "a reformat": "DERIVED" not in stack.first.image_type and "MPR" not in stack.first.image_type,
    }


def choose(stacks: Sequence[Stack]) -> tuple[Stack, str]:
    """The stack that is the scan, and in words which it is and why the others are not.

    Of those alike in ``preferences`` the one with most of the head; then slices of up to 5 mm, as few as possible:
    radiologists read those, thin ones are the same scan with more noise.

    Raises:
        UnreadableScan: none is fit.
    """
    faults = [unfit(stack) for stack in stacks]
    fit = [stack for stack, fault in zip(stacks, faults, strict=True) if not fault]
    if not fit:
        told = "; ".join(sorted({f"{stack}: {fault}" for stack, fault in zip(stacks, faults, strict=True)}))
        raise UnreadableScan(f"no series is a non-contrast CT of the head: {told}")

    def rank(stack: Stack) -> tuple:
        rest = (round(min(stack.coverage, HEAD_LENGTH) / 10), stack.step <= THICK, -stack.count)
        return (*preferences(stack).values(), *rest, -(stack.first.number or 0), -stack.first.acquisition)

    best = max(fit, key=rank)
    if len(stacks) == 1:
        return best, ""
    others = [f"{s}: {fault or worse(s, best)}" for s, fault in zip(stacks, faults, strict=True) if s is not best]
    return best, f"{best} of a study; passed over: {'; '.join(others)}"


def worse(stack: Stack, best: Stack) -> str:
    """Why a fit stack was not chosen."""
    ours, theirs = preferences(stack), preferences(best)
    for reason, better in zip(ours, theirs.values(), strict=True):
        if better and not ours[reason]:
            return reason
    if round(min(stack.coverage, HEAD_LENGTH) / 10) < round(min(best.coverage, HEAD_LENGTH) / 10):
        return "shows less of the head"
    return "the same head in other slices, or later"


def check_straight(stack: Stack) -> None:
    """Refuse slices that dcm2niix would put elsewhere, or bring to other CT numbers, than their headers say.

    Raises:
        UnreadableScan: the field of view moves from slice to slice, or a file of many frames has them in disorder, or
            each with a slope of its own.
    """
    for header in stack.files:
        along = np.diff(header.positions @ stack.normal)
        if header.scales > 1 or not ((along > 0).all() or (along < 0).all()):
            what = "each with a slope of its own" if header.scales > 1 else "in disorder"
            raise UnreadableScan(f"a DICOM file of {header.frames} frames, {what}: have it written as a file a slice")
    places = np.concatenate([header.positions for header in stack.files])
    line = np.c_[stack.places, np.ones(stack.count)]
    off = np.linalg.norm(places - line @ np.linalg.lstsq(line, places, rcond=None)[0], axis=1).max()
    if off > STRAIGHT:
        raise UnreadableScan(
            f"DICOM slices lie up to {off:.1f} mm beside a straight line: the field of view was moved within {stack}"
        )


def check_complete(stack: Stack) -> None:
    """Refuse a stack that lacks slices or holds two at one place.

    Slices may change their distance, as many head scans do at the skull base; a hole is a step that is wider than both
    the usual one around it and the slices beside it. Instance numbers are not asked: they are often written anew.

    Raises:
        UnreadableScan: says where.
    """
    if twice := doubled(stack):
        raise UnreadableScan(f"{twice} DICOM slices lie where another slice of {stack} lies, with other pixels")
    order = np.argsort(stack.places)
    steps = np.diff(stack.places[order])
    thick = np.concatenate([[header.thickness] * header.frames for header in stack.files])[order]
    for k, step in enumerate(steps):
        usual = float(np.median(steps[max(0, k - 3) : k + 4]))
        if step > GAP * max(usual, thick[k], thick[k + 1]):
            missing = max(1, round(step / usual) - 1)
            raise UnreadableScan(
                f"DICOM slices are missing: after slice {k + 1} of {len(order)} the next is {step:.1f} mm away, where "
                f"{usual:.1f} mm is usual ({missing} missing)"
            )
