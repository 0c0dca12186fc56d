"""The manifest: one row a scan, a plain CSV with paths relative to its own folder, checked as a whole when read.

Spreadsheets write CSV in many ways; separator, encoding and empty rows are found out. Values are not guessed: what is
not known is a mistake, with the nearest known value.
"""

import difflib
import io
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from anomaly3d.errors import UserError
from anomaly3d.system.files import LONGEST, is_name, is_text, written_whole

REQUIRED = ("scan_id", "subject_id", "image", "label", "split")
OPTIONAL = (
    "cohort",
    "site",
    "brain_mask",
    "lesion_mask",
    "lesions",
    "group",
    "age",
    "sex",
    "transform_fault",
    "mass_effect_mask",
    "twin",
    "lesion_ml",
    "segmentation",
    "segmentation_ml",
    "quality",
)
TRUTH = {"lesion_mask": "lesion", "mass_effect_mask": "displaced tissue"}  # columns of true masks, in words
MASKS = (*TRUTH, "segmentation")  # that go the scan's way; the last is what another program says
PATHS = ("image", "brain_mask", "lesion_mask", "transform_fault", "mass_effect_mask", "twin", "segmentation")
SPLITS = (
    "train",
    "validation",
    "healthy_reference",
    "calibration",
    "test",
    "labelled",
)  # labelled: for supervised ones
GROUPS = ("normal", "tbi", "other", "postoperative", "low_quality", "")
LABELS = ("0", "1", "")
OVERRULED = "accept"  # in the column quality: the scan is used whatever quality control says of it
HEALTHY_SPLITS = ("train", "validation", "healthy_reference", "calibration")
SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}
FAULTS = (
    "truncated",
    "wrong_orientation",
    "wrong_registration",
    "low_dose",
    "motion",
    "streaks",
    "artefact",
)  # of scans
SHOWN = 6  # rows that a message names
LESIONS = (
    *("epidural", "subdural", "intraparenchymal", "contusion", "subarachnoid", "intraventricular"),  # the paper's
    *("axonal_injury", "fracture", "pneumocephalus", "oedema", "midline_shift", "mass_effect", "herniation"),
    *("infarct", "tumour", "white_matter", "hydrocephalus", "atrophy", "calcification", "malformation", "other"),
    *("craniectomy", "craniotomy", "shunt", "drain", "implant"),  # after operations
    *FAULTS,
)
OTHER_NAMES = {  # of lesions: what somebody may have meant
    **dict.fromkeys(("edh", "extradural"), "epidural"),
    **dict.fromkeys(("sdh", "asdh", "csdh"), "subdural"),
    **dict.fromkeys(("iph", "ich", "intracerebral", "haematoma", "hematoma"), "intraparenchymal"),
    **dict.fromkeys(("haemorrhage", "hemorrhage", "bleed"), "intraparenchymal"),
    **dict.fromkeys(("sah", "tsah"), "subarachnoid"),
    **dict.fromkeys(("ivh",), "intraventricular"),
    **dict.fromkeys(("dai", "tai"), "axonal_injury"),
    **dict.fromkeys(("stroke", "ischemia", "ischaemia", "infarction"), "infarct"),
    **dict.fromkeys(("edema",), "oedema"),
    **dict.fromkeys(("tumor", "mass", "neoplasm"), "tumour"),
}
OTHER_COLUMNS = {"gender": "sex", "patient_sex": "sex", "patient_age": "age", "age_years": "age", "mask": "lesion_mask"}
NOTHING = ("", "na", "n/a", "nan", "null", "none", "-")  # as spreadsheets say that a value is missing
SEPARATORS = (",", ";", "\t", "|")
UNNAMED = "study"  # the cohort of rows that name none; a folder's name may be somebody's
SIMILAR = 0.75  # of an unknown name to a known one, to ask whether that is meant
MEANT = {"val": "validation", "healthy": "0", "normal": "0", "control": "0", "abnormal": "1", "patient": "1"}


def read_text(path: Path) -> pd.DataFrame:
    """A table that this program wrote, as text, what is missing as an empty one: a scan may be called NA or 007."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_manifest(path: Path, files: bool = True) -> pd.DataFrame:
    """Read and check a manifest.

    Every value is text; empty means unknown. ``label`` is ``0`` (normal), ``1`` (abnormal) or empty; ``split`` one of
    ``SPLITS``; ``lesions`` of ``LESIONS``, joined by ``;``; ``age`` in years; ``sex`` ``F`` or ``M``; ``quality``
    ``OVERRULED`` or empty. Paths come back absolute.

    Args:
        files: they must be there; not for one whose scans are prepared already, and may be archived.

    Raises:
        UserError: lists every problem with its row number (the header is row 1).
    """
    table = read_table(path)
    table.columns = [column_name(str(c)) for c in table.columns]
    if twice := sorted(set(table.columns[table.columns.duplicated()])):
        raise UserError(f"manifest {path} has the column(s) {', '.join(twice)} twice: rename or remove one of each")
    table = table.apply(lambda column: column.str.strip())
    table = table[(table != "").any(axis=1)]
    table = table[[c for c in table if not (c.startswith("unnamed") and (table[c] == "").all())]]
    if mistyped := [(c, OTHER_COLUMNS.get(c) or near(c, OPTIONAL)) for c in table if c not in (*REQUIRED, *OPTIONAL)]:
        meant = [f"{column}, meant as {known}" for column, known in mistyped if known and known not in table]
        if meant:
            raise UserError(f"manifest {path} has the unknown column(s) {'; '.join(meant)}? Rename or remove it")
    missing = [c for c in REQUIRED if c not in table.columns]
    if missing:
        raise UserError(
            f"manifest {path} lacks the column(s) {', '.join(missing)}; it needs {', '.join(REQUIRED)} and may have "
            f"{', '.join(OPTIONAL)}"
        )
    for column in OPTIONAL:
        if column not in table.columns:
            table[column] = ""
    table = tidy(table, path.parent)
    problems = find_problems(table, files)
    if problems:
        raise UserError(f"manifest {path}: " + "; ".join(problems))
    return table.reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """A table of text as any spreadsheet saves it: commas, semicolons, tabs or bars; UTF-8, UTF-16 or Windows' own.

    Raises:
        UserError: not such a table.
    """
    try:
        raw = path.expanduser().read_bytes()
    except (OSError, RuntimeError) as error:  # absent, a folder, locked; nobody's home folder
        raise UserError(
            f"manifest {path} is not a file that can be read: give the path of a CSV with dataset.manifest=..."
        ) from error
    if raw[:2] == b"PK":
        raise UserError(f"manifest {path} is a workbook, not a CSV: save the sheet as CSV from the spreadsheet")
    text = decoded(raw)
    header = text.split("\n", 1)[0]
    separator = max(SEPARATORS, key=header.count)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas leaves values out and only warns
            table = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                skip_blank_lines=False,
                skipinitialspace=True,
                index_col=False,
            ).fillna("")
            swallowed = table.map(lambda cell: "\n" in cell and cell.count(separator) >= table.shape[1] - 1).any(axis=1)
            if table.shape[1] > 1 and swallowed.any():
                raise UserError(
                    f"manifest {path}, row {int(swallowed.to_numpy().argmax()) + 2}: a quote opens and the next one is "
                    "rows below: remove it, or double it where it belongs to a value"
                )
            return table
    except pd.errors.ParserWarning as error:
        raise UserError(
            f"manifest {path} has rows with more values than the header has columns: put quotes around values that "
            f"hold {separator!r}"
        ) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise UserError(f"manifest {path} is not a CSV table: {error}") from error


def column_name(written: str) -> str:
    """A column's name as this program writes it; pandas has numbered those that are there twice."""
    name = re.sub(r"[ -]+", "_", written.strip().lower())
    first = re.sub(r"\.\d+$", "", name)
    return first if first in (*REQUIRED, *OPTIONAL) else name


def decoded(raw: bytes) -> str:
    """Text of a file in the encodings that spreadsheets write; Windows' own where it is no Unicode."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def near(name: str, known: Iterable[str]) -> str:
    """The known name that is most like one that is not, empty where none is."""
    found = difflib.get_close_matches(name.lower(), list(known), 1, SIMILAR)
    return found[0] if found else ""


def tidy(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The table with values as this program writes them, where there is no doubt what is meant."""
    table = table.copy()
    for column in table.columns.difference(["scan_id", "subject_id"]):
        table.loc[table[column].str.lower().isin(NOTHING), column] = ""
    table["subject_id"] = table["subject_id"].map(lambda name: unicodedata.normalize("NFC", name))  # of macOS: NFD
    table["label"] = table["label"].str.replace(r"\.0+$", "", regex=True)
    for column in ("split", "group", "quality"):
        table[column] = table[column].str.lower().str.replace(" ", "_")
    table["age"] = table["age"].map(tidy_age)
    table["sex"] = [SEXES.get(sex.lower(), sex) for sex in table["sex"]]
    table["lesions"] = [
        ";".join(part.strip().lower().replace(" ", "_") for part in re.split("[;,|+]", found) if part.strip())
        for found in table["lesions"]
    ]
    table["cohort"] = table["cohort"].replace("", UNNAMED)
    unset = table["group"] == ""
    table.loc[unset, "group"] = table.loc[unset, "label"].map({"0": "normal", "1": "tbi", "": ""}).fillna("")
    for column in PATHS:
        table[column] = [str(located(p, folder)) if p else "" for p in table[column]]
    return table


def located(text: str, folder: Path) -> Path:
    """A path of a manifest in ``folder``; ``~`` is the home folder, and a relative one may be written as on Windows."""
    try:
        path = folder / Path(text).expanduser()
        if not os.path.exists(path) and "\\" in text:
            path = folder / text.replace("\\", "/")
        return path.resolve()
    except (RuntimeError, ValueError):  # nobody's home folder, a character that no path has
        return folder / text


def numbered(index: pd.Index) -> str:
    """The rows of a table as numbers in its file, the first ``SHOWN`` of them."""
    more = len(index) - SHOWN
    return ", ".join(str(i + 2) for i in index[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def find_problems(table: pd.DataFrame, files: bool) -> list[str]:
    """Everything wrong with a manifest's rows, each with its row number and remedy; ``files`` as for
    ``read_manifest``."""
    problems = []

    def rows(where: pd.Series) -> str:
        return numbered(table.index[where])

    for column in ("scan_id", "subject_id", "image"):
        if (empty := table[column] == "").any():
            problems.append(f"row {rows(empty)}: {column} is empty")
    for scan_id, same in repeated(table, "scan_id"):
        if scan_id:
            case = " (capital letters count as small ones)" * (same["scan_id"].nunique() > 1)
            problems.append(f"row {numbered(same.index)}: duplicate scan_id {same['scan_id'].iloc[0]}{case}")
    plain = table["scan_id"].str.fullmatch(r"[A-Za-z0-9._-]*")
    unsafe = (table["scan_id"] != "") & ~(plain & table["scan_id"].map(is_name))
    if unsafe.any():
        problems.append(
            f"row {rows(unsafe)}: scan_id may hold only the letters A to Z, digits, dot, dash and underscore, none "
            f"of them a dot in front, and at most {LONGEST}"
        )
    known = {"label": LABELS, "split": SPLITS, "group": GROUPS, "sex": ("F", "M", ""), "quality": (OVERRULED, "")}
    for column, allowed in known.items():
        wrong = ~table[column].isin(allowed)
        if wrong.any():
            names = ", ".join(repr(a) for a in allowed)
            value = table.loc[wrong, column].iloc[0]
            meant = MEANT.get(value.lower()) or near(value, allowed)
            hint = f" (did you mean {meant}?)" if meant else ""
            problems.append(f"row {rows(wrong)}: {column} {value!r} must be one of {names}{hint}")
    faults = table["age"].map(wrong_age)
    several = [fault for fault in faults.unique() if fault]
    problems += [f"row {rows(faults == fault)}: {fault}" for fault in several[:SHOWN]]
    if len(several) > SHOWN:
        problems.append(f"{(faults != '').sum()} ages in all are like these")
    lesions = table["lesions"].map(lambda found: found.split(";")).explode()
    for name in lesions[~lesions.isin([*LESIONS, ""])].unique():
        meant = OTHER_NAMES.get(name) or near(name, LESIONS)
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(LESIONS)}"
        problems.append(f"row {numbered(lesions.index[lesions == name].unique())}: unknown lesion {name!r}: {hint}")
    for _, same in repeated(table, "subject_id"):
        if same["split"].nunique() > 1:
            subject, splits = same["subject_id"].iloc[0], " and ".join(sorted(set(same["split"])))
            problems.append(
                f"row {numbered(same.index)}: subject {subject} is in the splits {splits}; all scans of a person "
                "belong to one split"
            )
    both = (table["label"] == "0") & (table["lesions"] != "")
    if both.any():
        named = table.loc[both, "lesions"].iloc[0]
        problems.append(f"row {rows(both)}: label 0 (without findings), but lesions names {named}")
    ill = (table["label"] == "1") & table["split"].isin(HEALTHY_SPLITS)
    if ill.any():
        problems.append(f"row {rows(ill)}: abnormal scans (label 1) belong to the test split only")
    found = (table["lesions"] != "") & table["split"].isin(HEALTHY_SPLITS) & ~ill & ~both
    if found.any():
        named, split = table.loc[found, ["lesions", "split"]].iloc[0]
        problems.append(f"row {rows(found)}: lesions names {named}, and scans with findings do not belong to {split}")
    untold = (table["label"] == "") & (table["split"] == "labelled")
    if untold.any():
        problems.append(f"row {rows(untold)}: label is empty, and of labelled scans it must be known: 0 or 1")
    unknown = (table["label"] == "") & (table["split"] == "calibration")
    if unknown.any():
        problems.append(
            f"row {rows(unknown)}: label is empty, and scans by which thresholds are set (calibration) must be known "
            "to be healthy: label 0"
        )
    other = ~table["group"].isin(["normal", ""]) & table["split"].isin(HEALTHY_SPLITS) & ~ill
    if other.any():
        group = table.loc[other, "group"].iloc[0]
        problems.append(f"row {rows(other)}: scans of the group {group} belong to the test split only")
    for column in MASKS:
        named = table[(table[column] != "") & (table["label"] == "1")]
        for path, same in named.groupby(column):
            if len(same) > 1:
                rest = f"{column} {Path(str(path)).name} is that of several scans with findings: each has its own"
                problems.append(f"row {numbered(same.index)}: {rest}")
    for column in PATHS if files else ():
        gone = pd.Series([bool(p) and not os.path.exists(p) for p in table[column]], index=table.index)
        if gone.any():
            first = Path(table.loc[gone, column].iloc[0]).name
            problems.append(f"row {rows(gone)}: {column} not found ({first})")
    return problems


def repeated(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Values of a column that are there more than once, in whatever letter case, with their rows."""
    lower = table[column].str.lower()
    several = lower.duplicated(keep=False)
    for value, rows in table[several].groupby(lower[several]):
        yield str(value), rows


def tidy_age(age: str) -> str:
    """An age as numbers are written here, of a German spreadsheet's 47,5; empty where nothing is said."""
    return "" if age.strip().lower() in NOTHING else re.sub(r"^(\d+),(\d+)$", r"\1.\2", age.strip())


def wrong_age(age: str) -> str:
    """What is wrong with an age, empty for a number of years or none."""
    if not age:
        return ""
    try:
        if 0 <= float(age) <= 130:
            return ""
    except ValueError:
        pass
    number = re.search(r"\d+([.,]\d+)?", age)
    if not number or age.startswith("-"):
        return f"age {age!r} is not a number of years: leave it empty where it is unknown"
    years = float(number[0].replace(",", "."))
    if number[0] == age:
        return f"age {age!r} is no number of years that a person reaches: leave it empty where it is unknown"
    unit = {"m": 12, "w": 52.2, "d": 365.25}.get(age[-1:].lower(), 1)  # as DICOM writes ages: 045Y, 010M
    return f"age {age!r} is not a number of years: write {years / unit:.3g}"


def write_manifest(table: pd.DataFrame, path: Path) -> None:
    """Write a manifest with its columns in their order, absent ones empty; paths below its folder become relative.

    Raises:
        UserError: a path that is no text, which a table cannot hold.
    """
    table = table.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    for column in PATHS:
        if odd := [p for p in table[column] if not is_text(p)]:
            raise UserError(f"the name of {odd[0]!a} is not in {sys.getfilesystemencoding()}: rename the file")
        table[column] = [relative(p, path.parent) if p else "" for p in table[column]]
    with written_whole(path) as beside:
        table.to_csv(beside, index=False)


def relative(path: str, folder: Path) -> str:
    """A path as the manifest in ``folder`` names it."""
    resolved, folder = Path(path).resolve(), folder.resolve()
    return str(resolved.relative_to(folder)) if resolved.is_relative_to(folder) else str(resolved)
