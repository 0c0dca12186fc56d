"""Names of scans and people: from paths of any script, or digests where a name would say who it is."""

import hashlib
import hmac
import re
import secrets
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from statistics import median

from anomaly3d.errors import UserError
from anomaly3d.system.files import written_whole

NAMELESS = re.compile(  # with a number behind it, it tells people apart
    r"(anon(ym[a-z]*)?|unknown|none|null|de-?identif[a-z]*|removed|de-?id|x*|n/?a)?[\W_0]*(patient|subject)?[\W_0]*",
    re.IGNORECASE,
)
BIDS = re.compile(r"(sub-[A-Za-z0-9]+)_")
TIMES = re.compile(
    r"(baseline|follow.?up|visit|time.?point|tp|ses(sion)?|scan|exam|day|week|month|year|(sub)?acute|chronic|pre|post)"
    r"[\W_]*\w{0,3}",
    re.IGNORECASE,
)
BYTES = 32  # of the key of pseudonyms
MOST = 120  # letters of a name, to which digests are added
FEW = 3  # scans: a folder of more, whose names do not come again beside it, holds several people
MANY = 5  # names for each of some folders that hold the same: more than a person has scans
SHARED = 0.5  # share of names that come again in the folders beside


def digest(text: str, length: int = 12) -> str:
    """Hex digits that stand for a text."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:length]


def plain(text: str) -> str:
    """Letters, digits, dots, dashes and underscores for any text; a digest is added where letters were lost, or where
    there are so many that no file could be called so."""
    parts = unicodedata.normalize("NFKD", re.sub(r"\.(nii|nrrd|mgz|mha|zip)?(\.gz)?$", "", text, flags=re.IGNORECASE))
    lost = any(not c.isascii() and not unicodedata.combining(c) for c in parts)
    name = re.sub(r"[^A-Za-z0-9._]+", "-", parts.encode("ascii", "ignore").decode()).strip("-.")
    lost = lost or len(name) > MOST
    return f"{name[:MOST]}-{digest(text, 6)}".strip("-") if lost or not name else name


def distinct(names: Sequence[str], origins: Sequence[str]) -> list[str]:
    """The names, with a digest of its origin added to each that is there twice, also in other letter case."""
    times = Counter(name.lower() for name in names)
    return [f"{n}-{digest(o, 6)}" if times[n.lower()] > 1 else n for n, o in zip(names, origins, strict=True)]


def people(paths: Sequence[PurePath]) -> list[str]:
    """Who each scan shows, by its path below a root.

    A folder names a person if it holds one person's scans: ``sub-...`` (BIDS), or one of several side by side that hold
    few scans each or scans of the same names. Folders of points in time, which hold the same people's names, are no
    people. Else each scan is a person, or what its name says: ``sub-...``.
    """
    return [found for _, found in sorted(assign([(i, path.parts) for i, path in enumerate(paths)], ()))]


def assign(scans: Sequence[tuple[int, tuple[str, ...]]], above: tuple[str, ...]) -> list[tuple[int, str]]:
    """Number and person of scans, each with the parts of its path below ``above``."""
    found = [(i, "/".join([*above, *map(person_in, rest)])) for i, rest in scans if len(rest) < 2]
    folders: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for i, rest in scans:
        if len(rest) > 1:
            folders[rest[0]].append((i, rest[1:]))
    if are_times(folders):
        return found + assign([scan for inside in folders.values() for scan in inside], above)
    together = one_person_each(list(folders.values()))
    for folder, inside in folders.items():
        if together or folder.startswith("sub-"):
            found += [(i, "/".join([*above, folder])) for i, _ in inside]
        else:
            found += assign(inside, (*above, folder))
    return found


def person_in(name: str) -> str:
    """Who a file shows by its name."""
    bids = BIDS.match(name)
    return bids[1] if bids else name


def are_times(folders: Mapping[str, Sequence[tuple[int, tuple[str, ...]]]]) -> bool:
    """Whether folders side by side are points in time or places, each with many people by name."""
    names = {rest[0] for inside in folders.values() for _, rest in inside}
    if len(folders) < 2 or len(names) <= len(folders):
        return False
    many = MANY * len(folders) <= len(names) and share_repeated(list(folders.values())) >= SHARED
    return many or all(map(TIMES.fullmatch, folders))


def one_person_each(folders: Sequence[Sequence[tuple[int, tuple[str, ...]]]]) -> bool:
    """Whether folders side by side hold one person's scans each."""
    if len(folders) < 2:
        return False
    if median(map(len, folders)) <= FEW:
        return True
    return share_repeated(folders) >= SHARED


def share_repeated(folders: Sequence[Sequence[tuple[int, tuple[str, ...]]]]) -> float:
    """The share of scans whose path inside its folder is there in another folder too."""
    where = Counter(rest for inside in folders for _, rest in inside)
    return sum(n for n in where.values() if n > 1) / sum(where.values())


def pseudonym(patient: str, folder: Path) -> str:
    """A name for a patient id that does not lead back to it; empty for ids that anonymizers give to everybody.

    Keyed by random bytes in ``folder``, because short ids could be found by trying them all.

    Raises:
        UserError: the key is damaged.
    """
    if NAMELESS.fullmatch(patient.strip()):
        return ""
    key = folder / "pseudonyms.key"
    if not key.exists():
        with written_whole(key) as beside:
            beside.touch(0o600)
            beside.write_text(secrets.token_hex(BYTES))
    if len(key.read_text()) < 2 * BYTES:
        raise UserError(f"{key} is damaged: bring it back from a backup, or delete it and all pseudonyms change")
    return "p-" + hmac.new(key.read_bytes(), patient.strip().encode(), "sha256").hexdigest()[:12]


def split_by_name(name: str, shares: Mapping[str, float]) -> str:
    """A split drawn from a person's name itself, so that adding scans moves none of the others."""
    draw = int(digest(name), 16) / 16**12 * sum(shares.values())
    for split, share in shares.items():
        draw -= share
        if draw < 0:
            return split
    return list(shares)[-1]


def split_healthy(subjects: Iterable[str], labels: Iterable[str], shares: Mapping[str, float]) -> list[str]:
    """Splits of scans: people of whom every scan is normal (label ``0``) by ``shares``, all others are tested."""
    subjects = list(subjects)
    ill = {subject for subject, label in zip(subjects, labels, strict=True) if label != "0"}
    return ["test" if subject in ill else split_by_name(subject, shares) for subject in subjects]
