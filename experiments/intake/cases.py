"""Inputs that real users stumble over, through ``prepare`` of any checkout: what becomes of each, and is that right?

    python -m experiments.intake.cases --scans ../shared/scans --cases ../shared/cases --checkout . --name after

The scripts of ``--cases`` make the inputs, each states the right answer in its first lines. Done cases are skipped.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from anomaly3d.scans.readers import read_scan
from anomaly3d.scans.volume import Volume, resample

HERE = Path(__file__).parent
Rows = list[dict[str, str]]
Judge = Callable[[int, Rows], bool]  # exit code, rows of quality.csv -> whether that is right


def accepted(names: int) -> Judge:
    """All of that many scans are accepted."""
    return lambda code, rows: code == 0 and len(rows) == names and all(r["verdict"] == "accepted" for r in rows)


def none_accepted(word: str) -> Judge:
    """No scan is accepted, and every reason has the word."""
    return lambda code, rows: (
        bool(rows) and all(r["verdict"] != "accepted" and word.lower() in r["reasons"].lower() for r in rows)
    )


def refused(code: int, rows: Rows) -> bool:
    """A sentence before any work."""
    return code == 2 and not rows


def verdicts(wanted: dict[str, str]) -> Judge:
    """These verdicts by the scan's name; ``?`` is any verdict but a crash."""

    def judge(code: int, rows: Rows) -> bool:
        found = {name: [r for r in rows if name == r["scan_id"]] for name in wanted}
        return code in (0, 3) and all(
            len(found[name]) == 1 and verdict in (found[name][0]["verdict"], "?") for name, verdict in wanted.items()
        )

    return judge


def used(series: str) -> Judge:
    """One accepted scan, and it says which series of the study was used."""
    return lambda code, rows: code == 0 and len(rows) == 1 and series in rows[0].get("read_as", "")


SOUND_HEADERS = ["srow_zero", "five_d", "float64", "uint16_inter", "big_endian", "nifti2", "plain"]
CASES: dict[str, tuple[str, str, str, Judge]] = {
    # name: (script and its arguments, source of the scans below OUT, further overrides, judge)
    "compressed": ("dicom_compressed.py SCAN OUT", "", "", accepted(3)),
    "every slice twice": ("dicom_every_slice_twice.py SCAN OUT", "", "", accepted(1)),
    "intercept varies": ("dicom_intercept_varies.py SCAN OUT", "", "", accepted(1)),
    "names without suffix": ("dicom_names_without_suffix.py SCAN OUT", "", "", accepted(2)),
    "not a head": ("dicom_not_a_head.py OUT", "", "", none_accepted("head")),
    "only screens": (
        "dicom_only_screens.py SCAN OUT",
        "",
        "",
        lambda code, rows: code == 3 and sorted(r["verdict"] for r in rows) == ["accepted", "unreadable"],
    ),
    "slices missing": ("dicom_slices_missing.py SCAN OUT", "", "", none_accepted("missing")),
    "tags stripped": ("dicom_stripped_tags.py SCAN OUT", "", "", accepted(1)),
    "study in one folder": ("dicom_study_in_one_folder.py SCAN OUT", "", "", used("series 3")),
    "wrapped 12 bit": ("dicom_wrapped_12_bit.py SCAN OUT", "", "", none_accepted("HU")),
    "folder: one level": (
        "folder_layouts.py SCAN OUT",
        "one_level",
        "dataset.label=0",
        lambda code, rows: len({r["subject_id"] for r in rows}) == 12 or "same voxels" in str(rows),
    ),
    "folder: hidden files": ("folder_layouts.py SCAN OUT", "apple", "", accepted(1)),
    "folder: links": ("folder_layouts.py SCAN OUT", "linked", "", accepted(1)),
    "folder: names": ("folder_layouts.py SCAN OUT", "names", "", accepted(9)),
    "brain only": ("nifti_brain_only.py SCAN BRAIN OUT", "", "", none_accepted("skull")),
    "headers": (
        "nifti_header_oddities.py SCAN OUT",
        "",
        "",
        verdicts(
            dict.fromkeys(SOUND_HEADERS, "accepted")
            | dict.fromkeys(["metres", "micrometres", "centimetres", "twice", "nan_margin"], "unreadable")
            | {"spacing_only_in_pixdim": "?"}
        ),
    ),
    "mask on another world": (
        "nifti_mask_on_another_world.py SCAN LESION BRAIN OUT",
        "manifest.csv",
        "",
        lambda code, rows: [r["verdict"] for r in rows] == ["unreadable", "unreadable", "accepted"],
    ),
    "raw values": ("nifti_raw_values.py SCAN OUT", "", "", none_accepted("HU")),
    "smaller head": (
        "nifti_smaller_head.py SCAN OUT",
        "",
        "",
        lambda code, rows: (
            len(rows) == 8 and all(r["verdict"] == "accepted" for r in rows if "085" not in r["scan_id"])
        ),
    ),
    "thick slices": ("nifti_thick_slices.py SCAN OUT", "", "", accepted(4)),
    "zero outside": (
        "nifti_zero_outside.py SCAN OUT",
        "",
        "",
        lambda code, rows: len(rows) == 3 and all(r["verdict"] == "accepted" or "air" in r["reasons"] for r in rows),
    ),
    "same scan twice": ("manifest_same_scan_twice.py SCAN OUT", "manifest.csv", "", lambda code, rows: code == 2),
    "values that vanish": ("manifest_values_that_vanish.py SCAN OUT", "manifest.csv", "", refused),
}
EXCEL = ["clean", "bom", "crlf", "semicolon", "tab", "excel_de", "empty_rows", "trailing_commas", "spaces"]
EXCEL += ["labels_float", "capitals", "na", "utf16", "latin1"]
for kind in EXCEL:
    CASES[f"Excel: {kind}"] = (
        "manifest_from_excel.py SCAN OUT",
        f"{kind}.csv",
        "",
        lambda code, rows: [r["scan_id"] for r in rows] == ["007", "008", "009"],
    )


def companions(scan: Path, place: Path) -> dict[str, str]:
    """A brain mask and a lesion mask on the scan's grid, from the template's brain by the scan's own registration."""
    made = {"BRAIN": place / "brain.nii.gz", "LESION": place / "lesion.nii.gz"}
    if not made["LESION"].exists():
        from anomaly3d.preprocessing.base import Companions
        from anomaly3d.preprocessing.ncct import NCCT
        from anomaly3d.scans.readers import read_ct
        from tests.conftest import preprocessing

        ncct = NCCT(**{k: v for k, v in preprocessing().items() if k != "_target_"})
        ncct.setup(place)
        prepared = ncct.prepare(read_ct(scan), Companions())
        original = read_scan(scan)
        brain = Volume(prepared.brain_mask.astype(np.float32), prepared.affine)
        inside = resample(brain, original.affine, original.data.shape, np.linalg.inv(prepared.mni_to_scan)) > 0.5
        nib.save(nib.nifti1.Nifti1Image(inside.astype(np.uint8), original.affine), made["BRAIN"])
        centre = np.argwhere(inside).mean(0)
        away = np.linalg.norm((np.indices(inside.shape).T - centre) * original.spacing, axis=-1).T
        lesion = (inside & (away < 12)).astype(np.uint8)
        nib.save(nib.nifti1.Nifti1Image(lesion, original.affine), made["LESION"])
    return {name: str(path) for name, path in made.items()}


def run_case(name: str, arguments: argparse.Namespace, files: dict[str, str]) -> dict:
    """Make a case's input, prepare it, and say what became of it."""
    script, source, more, judge = CASES[name]
    out = arguments.work / "inputs" / script.split(".")[0]
    if not (out / ".made").exists():
        words = [files.get(word, word) for word in script.split()]
        words = [str(out) if word == "OUT" else word for word in words]
        subprocess.run([sys.executable, str(arguments.cases / words[0]), *words[1:]], check=True, capture_output=True)
        (out / ".made").touch()
    data = arguments.work / arguments.name / name.replace(" ", "_").replace(":", "")
    place = out / source
    dataset = (
        ["dataset=manifest", f"dataset.manifest={place}"]
        if source.endswith(".csv")
        else ["dataset=folder", f"dataset.root={place}"]
    )
    command = [sys.executable, "-m", "anomaly3d.prepare", *dataset, *more.split(), f"data_dir={data}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=arguments.checkout)
    tables = sorted(data.glob("*/*/quality.csv"))
    rows = pd.read_csv(tables[0], dtype=str, keep_default_na=False).to_dict("records") if tables else []
    error = [line for line in done.stderr.splitlines() if line.strip()]
    return {
        "right": bool(done.returncode in (0, 2, 3) and judge(done.returncode, rows)),
        "exit": done.returncode,
        "verdicts": {r["scan_id"]: r["verdict"] for r in rows},
        "reasons": sorted({r["reasons"] for r in rows if r["reasons"]}),
        "last_line": error[-1] if done.returncode and error and done.returncode != 3 else "",
    }


def main() -> None:
    """Run what has not been run under this name, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scans", type=Path, required=True)
    parser.add_argument("--cases", type=Path, required=True)
    parser.add_argument("--checkout", type=Path, default=Path())
    parser.add_argument("--name", required=True)
    parser.add_argument("--work", type=Path, default=Path("data/intake"))
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    arguments.work, arguments.cases = arguments.work.resolve(), arguments.cases.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    scan = (arguments.scans / "ct_head.nii.gz").resolve()
    os.environ["OMP_NUM_THREADS"] = "1"
    files = {"SCAN": str(scan), **companions(scan, arguments.work)}
    table = HERE / "cases.json"
    results = json.loads(table.read_text()) if table.exists() else {}
    for name in CASES:
        stored = results.setdefault(name, {})
        if arguments.only and arguments.only not in name:
            continue
        if arguments.name not in stored or arguments.only:
            stored[arguments.name] = run_case(name, arguments, files)
            table.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        shown = stored[arguments.name]
        print(f"{name:24s} {'right' if shown['right'] else 'WRONG':6s} exit {shown['exit']}", flush=True)


if __name__ == "__main__":
    main()
