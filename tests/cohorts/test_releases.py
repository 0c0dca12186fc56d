"""Each adapter from the layout of its release, written here with small phantoms, through ``prepare`` to the end."""

import json
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import yaml

from anomaly3d import prepare
from anomaly3d.cli import CONF
from anomaly3d.cohorts.bids import BIDS
from anomaly3d.cohorts.cq500 import CQ500
from anomaly3d.cohorts.folder import FolderCohort
from anomaly3d.cohorts.physionet_ctich import PhysioNetCTICH, demographics
from anomaly3d.cohorts.rsna_ich import RSNAICH
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.preprocessing.outcome import files_behind
from anomaly3d.scans.readers import read_image
from tests.conftest import TINY, refused
from tests.writers import small_head, write_series

SMALL = [text for text in TINY if text.startswith("preprocessing")] + ["workers=1"]


def prepared(dataset: str, root: Path, data: Path, *more: str) -> pd.DataFrame:
    """The manifest that ``prepare`` leaves of a release, every scan accepted; raw paths under ``raw``."""
    arguments = [f"dataset={dataset}", f"dataset.root={root}", f"data_dir={data}", *SMALL, *more]
    assert prepare.main(arguments) == 0
    quality = pd.read_csv(next(data.glob(f"{dataset}-*/*/quality.csv")))
    assert set(quality["verdict"]) == {"accepted"}
    read = {"dtype": str, "keep_default_na": False, "index_col": "scan_id"}
    table = pd.read_csv(next(data.glob(f"{dataset}-*/*/manifest.csv")), **read)
    return table.join(pd.read_csv(next(data.glob(f"raw/{dataset}-*/manifest.csv")), **read)[["image"]], rsuffix="_raw")


def lesion_mask(head: nib.nifti1.Nifti1Image, value: int = 1) -> nib.nifti1.Nifti1Image:
    mask = np.zeros(head.shape, np.uint8)
    mask[28:38, 24:32, 10:15] = value
    return nib.nifti1.Nifti1Image(mask, head.affine)


def save(image: nib.nifti1.Nifti1Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)


def test_physionet_ct_ich(tmp_path, capsys):
    root = tmp_path / "ct-ich"
    lines = [
        "PatientNumber,SliceNumber,Intraventricular,Intraparenchymal,Subarachnoid,Epidural,Subdural,No_Hemorrhage,"
    ]
    lines[0] += "Fracture_Yes_No"
    findings = {49: "0,0,0,0,0,1,0", 50: "0,0,0,0,1,0,0", 58: "0,0,0,0,0,1,1", 59: "0,0,0,0,0,1,0"}
    for patient, found in findings.items():
        lines += [f"{patient},{k},{'0,0,0,0,0,1,0' if k != 7 else found}" for k in range(1, 25)]
    for seed, patient in enumerate((49, 50, 58)):  # 59 has a diagnosis and no scan, as in the release
        head = small_head(seed)
        save(head, root / "ct_scans" / f"{patient:03d}.nii")
        save(lesion_mask(head, 255 if patient == 50 else 0), root / "masks" / f"{patient:03d}.nii")
    (root / "hemorrhage_diagnosis_raw_ct.csv").write_text("\n".join(lines) + "\n")
    (root / "Patient_demographics.csv").write_text(
        'Patient Number,"Age\n(years)",Gender,Hemorrhage,,Fracture,Note\n,,,Epidural,Subdural,,\n'
        "49,43,Male,,,,\n50,2.5,Female,,1,,\n58,70,Male,,,1,\n"
    )
    table = prepared("physionet_ctich", root, tmp_path / "data")
    assert "no scan of patient(s) 059" in capsys.readouterr().out
    assert table["label"].to_dict() == {"ctich-049": "0", "ctich-050": "1", "ctich-058": "1"}
    assert table["lesions"].to_dict() == {"ctich-049": "", "ctich-050": "subdural", "ctich-058": "fracture"}
    assert table["age"].tolist() == ["43", "2.5", "70"]
    assert table["sex"].tolist() == ["M", "F", "M"]
    assert set(table["split"]) == {"test"}
    assert float(table["lesion_ml"]["ctich-050"]) == pytest.approx(400 * small_ml(1), rel=0.01)
    assert table["lesion_mask"]["ctich-058"] == ""
    assert demographics(root / "none.csv") == {}
    slices = root / "hemorrhage_diagnosis_raw_ct.csv"
    saved = "\n".join(["".join(lines[:1]), *(line.replace(",1", ",1.0").replace(",0", ",0.0") for line in lines[1:])])
    slices.write_text(saved + "\n" + "," * 8 + "\n")  # by a spreadsheet, with a row of nothing
    again = PhysioNetCTICH("ctich", str(root)).rows(tmp_path, 1)
    assert again["lesions"].tolist() == ["", "subdural", "fracture"]
    slices.write_text("\n".join([*lines[:3], lines[3].replace(",0,", ",yes,", 1), *lines[4:]]) + "\n")
    with pytest.raises(UserError, match="row 4: no patient's number, or a diagnosis other than 0 and 1"):
        PhysioNetCTICH("ctich", str(root)).rows(tmp_path, 1)


def small_ml(seed: int) -> float:
    """Volume of a voxel of ``small_head(seed)``."""
    return abs(np.linalg.det(small_head(seed).affine[:3, :3])) / 1000


def test_cq500_takes_the_majority_of_its_readers(tmp_path, capsys):
    root = tmp_path / "cq500"
    findings = [
        "ICH",
        "IPH",
        "IVH",
        "SDH",
        "EDH",
        "SAH",
        "BleedLocation-Left",
        "Fracture",
        "MassEffect",
        "MidlineShift",
    ]
    columns = ["name", "Category", *(f"R{r}:{finding}" for r in (1, 2, 3) for finding in findings)]
    rows = {
        "CQ500-CT-0": {"R1:ICH": 1, "R2:ICH": 1, "R1:SDH": 1, "R2:SDH": 1, "R3:EDH": 1},
        "CQ500-CT-12": {"R1:ICH": 1, "R1:IPH": 1},  # one reader alone
        "CQ500-CT-400": {"R1:MidlineShift": 1, "R2:MidlineShift": 1, "R3:MidlineShift": 1},
    }
    table = pd.DataFrame([{"name": n, "Category": "B1", **found} for n, found in rows.items()], columns=columns)
    root.mkdir()
    table.fillna(0).to_csv(root / "reads.csv", index=False)
    patient = root / "qct01" / "CQ500CT0 CQ500CT0" / "Unknown Study"
    head, study = small_head(0), "1.2.3"
    write_series(patient / "CT Plain", head, study=study, name="CT{:06d}.dcm", SeriesDescription="Plain")
    post = {"SeriesDescription": "POST CONTRAST", "SeriesNumber": 4}
    write_series(patient / "CT POST CONTRAST", head, study=study, name="CT{:06d}.dcm", **post)
    with zipfile.ZipFile(root / "CQ500CT12.zip", "w") as archive:
        for path in write_series(tmp_path / "loose", small_head(1)):
            archive.write(path, f"CQ500CT12 CQ500CT12/Unknown Study/CT Plain/{path.name}")
    found = prepared("cq500", root, tmp_path / "data")
    assert found["label"].to_dict() == {"cq500-000": "1", "cq500-012": "0"}
    assert found["lesions"]["cq500-000"] == "subdural"
    told = capsys.readouterr().out
    assert "no scan of 1 patient(s)" in told
    assert "cq500-000: series 3 (28 axial slices" in told
    assert "with contrast agent" in told
    unread = pd.read_csv(root / "reads.csv", dtype=str).set_index("name")
    unread.loc["CQ500-CT-12", ["R1:IPH", "R2:IPH", "R3:EDH"]] = ["", "0", ""]
    unread.loc["CQ500-CT-0", ["R1:IPH", "R2:IPH"]] = ""
    unread.to_csv(root / "reads.csv")
    labels = CQ500("cq500", str(root)).rows(tmp_path, 1)["label"].tolist()
    assert labels == ["1", "0"]  # two readers agree on each finding, or there is another
    unread.loc["CQ500-CT-12", "R3:IPH"] = ""
    unread.to_csv(root / "reads.csv")
    assert CQ500("cq500", str(root)).rows(tmp_path, 1)["label"].tolist() == ["1", ""]


def test_rsna_slices_are_gathered_to_scans(tmp_path):
    root, rows = tmp_path / "rsna", ["ID,Label"]
    kinds = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
    for seed, person in ((0, "ID_aaa"), (1, "ID_bbb")):
        tags = {"PatientID": person, "SeriesDescription": "", "ConvolutionKernel": ""}
        for path in write_series(root / "stage_2_train", small_head(seed), name=f"ID_{seed}{{:03d}}.dcm", **tags):
            bleeds = {"subdural", "any"} if path.stem == "ID_1007" else set()
            rows += [f"{path.stem}_{kind},{int(kind in bleeds)}" for kind in kinds]
    (root / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    cohort = RSNAICH("rsna", str(root), "stage_2_train", {"train": 1.0})
    saved = [line.replace(",1", ",1.0").replace(",0", ",0.0") for line in rows[1:]]  # by a spreadsheet
    (root / "stage_2_train.csv").write_text("\n".join([rows[0], *saved]) + "\n")
    assert sorted(cohort.rows(tmp_path / "again", 1)["lesions"]) == ["", "subdural"]
    (root / "stage_2_train.csv").write_text("\n".join([*rows[:-1], rows[-1].replace(",0", ",no")]) + "\n")
    with pytest.raises(UserError, match="is no, not 0 or 1"):
        cohort.rows(tmp_path / "again", 1)
    (root / "stage_2_train.csv").write_text("\n".join(rows) + "\n")
    table = prepared(
        "rsna_ich", root, tmp_path / "data", "dataset.shares={train: 1, validation: 0, calibration: 0, test: 0}"
    )
    assert sorted(table["label"]) == ["0", "1"]
    healthy, ill = table[table["label"] == "0"].iloc[0], table[table["label"] == "1"].iloc[0]
    assert (healthy["split"], ill["split"], ill["lesions"]) == ("train", "test", "subdural")
    assert table["subject_id"].nunique() == 2
    assert not table["subject_id"].str.contains("ID_").any()


def test_rsna_slices_that_come_later_are_read_and_those_that_lack_are_told(tmp_path, capsys):
    root = tmp_path / "rsna"
    paths = write_series(root / "stage_2_train", small_head(0), name="ID_{:03d}.dcm")
    rows = [f"{path.stem}_{kind},{int(path == paths[-1])}" for path in paths for kind in ("subdural", "any")]
    (root / "stage_2_train.csv").write_text("\n".join(["ID,Label", *rows]) + "\n")
    away = paths[-1].rename(tmp_path / "later.dcm")
    cohort = RSNAICH("rsna", str(root), "stage_2_train", {"train": 1.0})
    first = pd.read_csv(cohort.manifest(tmp_path / "data", 1), dtype=str)
    assert first["label"].tolist() == ["0"]
    assert f"1 of {len(paths)} slices of stage_2_train.csv are not in" in capsys.readouterr().out
    away.rename(paths[-1])
    second = cohort.manifest(tmp_path / "data", 1)
    assert pd.read_csv(second, dtype=str)[["label", "split"]].to_numpy().tolist() == [["1", "test"]]
    made = second.stat().st_mtime_ns
    assert cohort.manifest(tmp_path / "data", 1).stat().st_mtime_ns == made  # nothing changed: not read again


def test_center_tbi_export_with_a_table_of_the_experts_review(tmp_path, capsys):
    root = tmp_path / "center"
    save(small_head(0), root / "nifti" / "a.nii.gz")
    save(small_head(1), root / "nifti" / "b.nii.gz")
    write_series(root / "dicom" / "c", small_head(2))
    (root / "review.csv").write_text(
        "gupi;file;Age;Contusion;MidlineShift\n1abc234;nifti/a.nii.gz;31;absent;absent\n"
        "2abc345;nifti/b.nii.gz;44;present;absent\n3abc456;dicom/c;52;absent;not interpretable\n"
    )
    assert prepare.main(["dataset=center_tbi", f"dataset.root={root}", f"data_dir={tmp_path / 'x'}"]) == 2
    refused(capsys, "lacks the column(s) EpiduralHematoma", "it has gupi, file, Age", "~dataset.findings.NAME")
    drop = [
        f"~dataset.findings.{name}"
        for name in config_of("center_tbi")["findings"]
        if name not in ("Contusion", "MidlineShift")
    ]
    table = prepared(
        "center_tbi",
        root,
        tmp_path / "data",
        "dataset.age=Age",
        "dataset.shares={train: 1, validation: 0, calibration: 0, test: 0}",
        *drop,
    )
    assert table["label"].tolist() == ["0", "1", ""]
    assert table["split"].tolist() == ["train", "test", "test"]
    assert table["age"].tolist() == ["31", "44", "52"]
    assert table["lesions"].tolist() == ["", "contusion", ""]


def config_of(name: str) -> dict:
    """``conf/dataset/NAME.yaml`` as plain values."""
    return yaml.safe_load((Path(CONF) / "dataset" / f"{name}.yaml").read_text())


def test_bids_with_participants_sessions_and_lesion_masks(tmp_path, capsys):
    root = tmp_path / "bids"
    for seed, name in enumerate(("01", "02")):
        save(small_head(seed), root / f"sub-{name}" / "ses-1" / "ct" / f"sub-{name}_ses-1_ct.nii.gz")
    save(small_head(5), root / "sub-02" / "ses-1" / "anat" / "sub-02_ses-1_T1w.nii.gz")
    mask = "sub-02_ses-1_label-lesion_mask.nii.gz"
    save(lesion_mask(small_head(1)), root / "derivatives" / "manual" / "sub-02" / "ses-1" / "ct" / mask)
    about = {"Name": "heads", "BIDSVersion": "1.9.0"}
    (root / "dataset_description.json").write_text(json.dumps(about))
    derived = {**about, "GeneratedBy": [{"Name": "manual"}]}
    (root / "derivatives" / "manual" / "dataset_description.json").write_text(json.dumps(derived))
    (root / "participants.tsv").write_text(
        "participant_id\tage\tsex\tdiagnosis\nsub-01\t40\tF\tcontrol\nsub-02\t61\tM\ttbi\n"
    )
    more = ["dataset.label_column=diagnosis", "dataset.shares={train: 1, validation: 0, calibration: 0, test: 0}"]
    table = prepared("bids", root, tmp_path / "data", *more)
    assert table.index.tolist() == ["sub-01_ses-1_ct", "sub-02_ses-1_ct"]
    assert table["label"].tolist() == ["0", "1"]
    assert table["split"].tolist() == ["train", "test"]
    assert table["age"].tolist() == ["40", "61"]
    assert float(table["lesion_ml"].iloc[1]) > 1
    assert table["lesion_mask"].iloc[0] == ""
    told = capsys.readouterr().out
    assert "diagnosis: taken as abnormal: tbi (1); healthy is" in told
    for unknown in ("NA", "nan", "None", "-", "n/a"):
        (root / "participants.tsv").write_text(f"participant_id\tdiagnosis\nsub-01\t{unknown}\nsub-02\tcontrl\n")
        rows = BIDS("bids", str(root), "diagnosis", ["control"], {"train": 1.0}).rows(tmp_path, 1)
        assert rows["label"].tolist() == ["", "1"], unknown
        assert "diagnosis: taken as abnormal: contrl (1); healthy is control" in capsys.readouterr().out
    folder = root / "derivatives" / "manual" / "sub-02" / "ses-1" / "ct"
    plain = BIDS("bids", str(root), None, [], {"train": 1.0})
    for other in ("sub-02_ses-1_run-2_label-lesion_mask", "sub-02_ses-1_space-MNI152_label-lesion_mask"):
        save(lesion_mask(small_head(1)), folder / f"{other}.nii.gz")  # of another run, in another space
    assert [Path(path).name for path in plain.rows(tmp_path, 1)["lesion_mask"]] == ["", mask]
    save(lesion_mask(small_head(1)), folder / "sub-02_ses-1_space-orig_label-lesion_mask.nii.gz")
    with pytest.raises(UserError, match="has several lesion masks"):
        plain.rows(tmp_path, 1)
    (root / "derivatives" / "manual" / "dataset_description.json").unlink()
    assert plain.rows(tmp_path, 1)["lesion_mask"].tolist() == ["", ""]
    assert "manual has no dataset_description.json, so no mask is taken from it" in capsys.readouterr().out
    of_mr = BIDS("mr", str(root), None, [], {"train": 1.0}, suffix="T1w")
    assert of_mr.rows(tmp_path, 1)["scan_id"].tolist() == ["sub-02_ses-1_T1w"]


def test_bids_people_who_are_not_clear(tmp_path, capsys):
    root = tmp_path / "bids"
    for name in ("01", "02"):
        save(small_head(1), root / f"sub-{name}" / "ct" / f"sub-{name}_ct.nii.gz")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "heads", "BIDSVersion": "1.9.0"}))
    people = root / "participants.tsv"
    cohort = BIDS("bids", str(root), "diagnosis", ["healthy"], {"train": 1.0})
    people.write_text("participant_id\tdiagnosis\nsub-01\tstroke\nsub-01\thealthy\n")
    with pytest.raises(UserError, match="several rows of sub-01, and their diagnosis differs"):
        cohort.rows(tmp_path, 1)
    people.write_text("participant_id\tdiagnosis\n1\thealthy\n2\tstroke\n")
    with pytest.raises(UserError, match="knows nobody who has an image: it has 1, images are of sub-01"):
        cohort.rows(tmp_path, 1)
    people.write_text("participant_id\tdiagnosis\nsub-01\thealthy\n")
    assert cohort.rows(tmp_path, 1)["label"].tolist() == ["0", ""]
    assert "lacks 1 of 2 subjects (sub-02): they get no label" in capsys.readouterr().out
    (root / "sub-01" / "ct" / "sub-01_ct.json").write_text("")
    with pytest.raises(UserError, match=r"pybids cannot read .*sub-01_ct\.json"):
        cohort.rows(tmp_path, 1)


def test_patients_of_one_study_number_are_told_apart(tmp_path):
    """As an anonymizer leaves them that gives all studies one number."""
    for k, person in enumerate("AB"):
        write_series(tmp_path / "in", small_head(k), study="1.2.3", name=person + "{}", PatientID=person)
    found = FolderCohort("dicom", str(tmp_path / "in")).rows(tmp_path / "data", 1)
    assert found["scan_id"].nunique() == found["subject_id"].nunique() == 2
    for image, person in zip(found["image"], "AB", strict=True):
        assert {path.name[0] for path in files_behind(Path(image))} == {person}
    with pytest.raises(UnreadableScan, match="2 DICOM patients"):
        read_image(tmp_path / "in")


def test_a_dicom_tree(tmp_path):
    for k, person in enumerate(("A", "B")):
        for visit in range(2):
            write_series(
                tmp_path / "pacs" / f"DICOM{k}" / f"{visit}", small_head(2 * k + visit), name="I{}", PatientID=person
            )
    table = prepared("dicom", tmp_path / "pacs", tmp_path / "data", "dataset.label=0")
    assert len(table) == 4
    assert table["subject_id"].nunique() == 2
    assert (table.groupby("subject_id")["split"].nunique() == 1).all()


def test_a_healthy_scan_with_a_lesion_in_its_mask_is_refused(tmp_path, capsys):
    head = small_head(0)
    save(head, tmp_path / "a.nii.gz")
    save(lesion_mask(head, 0), tmp_path / "m.nii.gz")
    (tmp_path / "study.csv").write_text(
        "scan_id,subject_id,image,label,split,lesion_mask\na,p,a.nii.gz,,train,m.nii.gz\n"
    )
    arguments = ["dataset=manifest", f"dataset.manifest={tmp_path / 'study.csv'}", f"data_dir={tmp_path / 'd'}", *SMALL]
    assert prepare.main(arguments) == 0  # a mask of nothing may be there
    save(lesion_mask(head), tmp_path / "m.nii.gz")
    assert prepare.main(arguments) == 2
    refused(capsys, "taken for healthy: a (train, label empty, ", " ml): correct label and split")


def test_a_folder_and_a_csv(tmp_path):
    save(small_head(0), tmp_path / "in" / "a.nii.gz")
    assert prepared("folder", tmp_path / "in", tmp_path / "data").index.tolist() == ["a"]
    (tmp_path / "study.csv").write_text("Scan_ID;Subject_ID;image;label;split\n007;p;in\\a.nii.gz;0.0;Train\n")
    arguments = ["dataset=manifest", f"dataset.manifest={tmp_path / 'study.csv'}", f"data_dir={tmp_path / 'd'}", *SMALL]
    assert prepare.main(arguments) == 0
    made = pd.read_csv(next((tmp_path / "d").glob("*/*/manifest.csv")), dtype=str)
    assert made[["scan_id", "label", "split"]].to_numpy().tolist() == [["007", "0", "train"]]


@pytest.mark.parametrize("dataset", ["physionet_ctich", "cq500", "rsna_ich", "center_tbi", "bids", "dicom"])
def test_a_release_that_is_not_there_says_which_folder_is_wanted(dataset, tmp_path, capsys):
    for root in ("null", str(tmp_path / "nowhere")):
        assert prepare.main([f"dataset={dataset}", f"dataset.root={root}", f"data_dir={tmp_path}/data"]) == 2
        refused(capsys, "dataset.root=")
