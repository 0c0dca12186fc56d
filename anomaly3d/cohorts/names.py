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

NAMELESS = re.compile(r"(anon\w*|unknown|none|null|deidentified|removed|de-?id|0*|x*|n/?a)", re.IGNORECASE)
MOST = 120  # letters of a name, to which digests are added
FEW = 3  # scans: a folder of more, whose names do not come again beside it, holds several people
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
    few scans each or scans of the same names. Else each scan is a person.
    """
    return [found for _, found in sorted(assign([(i, path.parts) for i, path in enumerate(paths)], ()))]


def assign(scans: Sequence[tuple[int, tuple[str, ...]]], above: tuple[str, ...]) -> list[tuple[int, str]]:
    """Number and person of scans, each with the parts of its path below ``above``."""
    found = [(i, "/".join([*above, *rest])) for i, rest in scans if len(rest) < 2]
    folders: dict[str, list[tuple[int, tuple[str, ...]]]] = defaultdict(list)
    for i, rest in scans:
        if len(rest) > 1:
            folders[rest[0]].append((i, rest[1:]))
    together = one_person_each(list(folders.values()))
    for folder, inside in folders.items():
        if together or folder.startswith("sub-"):
            found += [(i, "/".join([*above, folder])) for i, _ in inside]
        else:
            found += assign(inside, (*above, folder))
    return found


def one_person_each(folders: Sequence[Sequence[tuple[int, tuple[str, ...]]]]) -> bool:
    """Whether folders side by side hold one person's scans each."""
    if len(folders) < 2:
        return False
    if median(map(len, folders)) <= FEW:
        return True
    where: dict[tuple[str, ...], int] = defaultdict(int)
    for inside in folders:
        for _, rest in inside:
            where[rest] += 1
    return sum(n for n in where.values() if n > 1) >= SHARED * sum(where.values())


def pseudonym(patient: str, folder: Path) -> str:
    """A name for a patient id that does not lead back to it; empty for ids that anonymizers give to everybody.

    Keyed by random bytes in ``folder``, because short ids could be found by trying them all.
    """
    if NAMELESS.fullmatch(patient.strip()):
        return ""
    key = folder / "pseudonyms.key"
    if not key.exists():
        folder.mkdir(parents=True, exist_ok=True)
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600)
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
