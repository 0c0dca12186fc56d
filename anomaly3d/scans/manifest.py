"""The manifest: one row a scan, a plain CSV with paths relative to its own folder, checked as a whole when read."""

from pathlib import Path

import pandas as pd

from anomaly3d.errors import UserError
from anomaly3d.system.files import written_whole

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
)
TRUTH = {"lesion_mask": "lesion", "mass_effect_mask": "displaced tissue"}  # columns of true masks, in words
PATHS = ("image", "brain_mask", "lesion_mask", "transform_fault", "mass_effect_mask", "twin")
SPLITS = ("train", "validation", "calibration", "test", "labelled")  # labelled: supervised controls learn from it
GROUPS = ("normal", "tbi", "postoperative", "low_quality", "")
LABELS = ("0", "1", "")


def read_manifest(path: Path) -> pd.DataFrame:
    """Read and check a manifest.

    Every value is text; empty means unknown. ``label`` is ``0`` (normal), ``1`` (abnormal) or empty; ``split`` one of
    ``SPLITS``; ``lesions`` joined by ``;``. Paths come back absolute.

    Raises:
        UserError: lists every problem with its row number (the header is row 1).
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"manifest {path} is not a file: give the path of a CSV with dataset.manifest=...") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"manifest {path} is not a CSV table: {error}") from error
    missing = [c for c in REQUIRED if c not in table.columns]
    if missing:
        raise UserError(
            f"manifest {path} lacks the column(s) {', '.join(missing)}; it needs {', '.join(REQUIRED)} and may have "
            f"{', '.join(OPTIONAL)}"
        )
    for column in OPTIONAL:
        if column not in table.columns:
            table[column] = ""
    table["cohort"] = table["cohort"].replace("", path.parent.name)
    unset = table["group"] == ""
    table.loc[unset, "group"] = table.loc[unset, "label"].map({"0": "normal", "1": "tbi", "": ""}).fillna("")
    for column in PATHS:
        table[column] = [str((path.parent / p).resolve()) if p else "" for p in table[column]]
    problems = find_problems(table)
    if problems:
        raise UserError(f"manifest {path}: " + "; ".join(problems))
    return table


def find_problems(table: pd.DataFrame) -> list[str]:
    """Everything wrong with a manifest's rows, each with its row number and remedy."""
    problems = []

    def rows(where: pd.Series) -> str:
        return ", ".join(str(i + 2) for i in table.index[where])

    for column in ("scan_id", "subject_id", "image"):
        if (empty := table[column] == "").any():
            problems.append(f"row {rows(empty)}: {column} is empty")
    for scan_id, same in table.groupby("scan_id"):
        if len(same) > 1 and scan_id:
            problems.append(
                f"row {', '.join(str(i + 2) for i in same.index)}: duplicate scan_id {same['scan_id'].iloc[0]}"
            )
    unsafe = ~table["scan_id"].str.fullmatch(r"[A-Za-z0-9._-]*")
    if unsafe.any():
        problems.append(f"row {rows(unsafe)}: scan_id may hold only letters, digits, dot, dash and underscore")
    for column, allowed in (("label", LABELS), ("split", SPLITS), ("group", GROUPS)):
        wrong = ~table[column].isin(allowed)
        if wrong.any():
            names = ", ".join(repr(a) for a in allowed)
            problems.append(f"row {rows(wrong)}: {column} must be one of {names}")
    for _, same in table.groupby("subject_id"):
        if same["split"].nunique() > 1:
            where = ", ".join(str(i + 2) for i in same.index)
            subject, splits = same["subject_id"].iloc[0], " and ".join(sorted(set(same["split"])))
            problems.append(
                f"row {where}: subject {subject} is in the splits {splits}; all scans of a person belong to one split"
            )
    ill = (table["label"] == "1") & ~table["split"].isin(["test", "labelled"])
    if ill.any():
        problems.append(f"row {rows(ill)}: abnormal scans (label 1) belong to the test split only")
    for column in PATHS:
        gone = pd.Series([bool(p) and not Path(p).exists() for p in table[column]], index=table.index)
        if gone.any():
            first = Path(table.loc[gone, column].iloc[0]).name
            problems.append(f"row {rows(gone)}: {column} not found ({first})")
    return problems


def write_manifest(table: pd.DataFrame, path: Path) -> None:
    """Write a manifest with its columns in their order, absent ones empty; paths below its folder become relative."""
    table = table.reindex(columns=[*REQUIRED, *OPTIONAL], fill_value="")
    for column in PATHS:
        table[column] = [relative(p, path.parent) if p else "" for p in table[column]]
    with written_whole(path) as beside:
        table.to_csv(beside, index=False)


def relative(path: str, folder: Path) -> str:
    """A path as the manifest in ``folder`` names it."""
    resolved, folder = Path(path).resolve(), folder.resolve()
    return str(resolved.relative_to(folder)) if resolved.is_relative_to(folder) else str(resolved)
