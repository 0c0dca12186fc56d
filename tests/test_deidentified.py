"""Names, numbers and dates that identify a patient, planted wherever DICOM has room for them: nothing comes through."""

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from anomaly3d import calibrate, evaluate, prepare, score, train
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scans.manifest import read_manifest
from tests.conftest import TINY
from tests.writers import small_head, write_series

WORDS = "QZXSECRET"  # part of every planted text
TEXTS = (
    *("PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "PatientAddress"),
    *("PatientTelephoneNumbers", "PatientComments", "MedicalRecordLocator", "IssuerOfPatientID", "Occupation"),
    *("AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy"),
    *("RequestingPhysician", "StationName", "DeviceSerialNumber", "ProtocolName", "SeriesDescription"),
    *("StudyDescription", "ImageComments", "AdditionalPatientHistory", "RequestedProcedureDescription"),
    *("PerformedProcedureStepDescription", "AdmittingDiagnosesDescription", "DerivationDescription"),
)
DATE, BIRTH, TIME = "19471123", "19130507", "031415.926"
DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate")
TIMES = ("StudyTime", "SeriesTime", "AcquisitionTime", "ContentTime")
UID = "1.2.840.99999.7531598642"
KEY = 64 * "d"  # under which the six people fall into every split
PLANTED = (WORDS, DATE, BIRTH, TIME, UID)


def plant(d: Dataset, k: int, person: int) -> None:
    """Identifying values in plain, nested and private elements."""
    d.StudyInstanceUID = f"{UID}.{person}.1"
    d.SeriesInstanceUID, d.FrameOfReferenceUID = f"{UID}.{person}.2", f"{UID}.{person}.3"
    for tag in TEXTS:
        setattr(d, tag, f"{WORDS}{person}"[:16])
    for tag in DATES:
        setattr(d, tag, DATE)
    for tag in TIMES:
        setattr(d, tag, TIME)
    d.PatientBirthDate = BIRTH
    nested, deeper = Dataset(), Dataset()
    deeper.PatientName, deeper.PatientID, deeper.StudyDate = f"{WORDS}^NESTED", f"{WORDS}{person}", DATE
    nested.RequestedProcedureID, nested.RequestAttributesSequence = WORDS, Sequence([deeper])
    d.RequestAttributesSequence, d.ReferencedStudySequence = Sequence([nested]), Sequence([nested])
    block = d.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", f"{WORDS} private {DATE}".encode())
    block.add_new(0x20, "LO", f"{WORDS} private")


@pytest.fixture(scope="module")
def patients(tmp_path_factory):
    """Six people, healthy as far as is known, with what names them in their slices but not in their folders."""
    root = tmp_path_factory.mktemp("disc")
    for person in range(6):
        write_series(root / f"S{person}", small_head(person), edit=lambda d, k, p=person: plant(d, k, p))
    return root


def found_in(folder, *texts: str) -> list[str]:
    """Files below a folder, or texts, in which something planted is found; names of files count too."""
    leaks = [str(path) for path in folder.rglob("*") for secret in PLANTED if secret in path.name]
    for path in folder.rglob("*"):
        if path.is_file():
            leaks += [f"{path}: {secret}" for secret in PLANTED if secret.encode() in path.read_bytes()]
    return leaks + [secret for text in texts for secret in PLANTED if secret in text]


def test_nothing_planted_comes_through_from_prepare_to_score(patients, tmp_path, monkeypatch, capfd):
    assert found_in(patients)  # the search itself finds what is there
    places = [f"data_dir={tmp_path / 'data'}", f"runs_dir={tmp_path / 'runs'}"]
    small = [text for text in TINY if "dataset" not in text]
    cohort = ["dataset=dicom", f"dataset.root={patients}", "dataset.label=0"]
    cohort.append("dataset.shares={train: 0.4, validation: 0.2, calibration: 0.2, test: 0.2}")
    monkeypatch.setattr("anomaly3d.cohorts.names.secrets.token_hex", lambda size: KEY)
    assert prepare.main([*cohort, *places, *small[:2], "workers=1"]) == 0
    assert train.main([*cohort, *places, *small, "run=tiny", "logger=wandb"]) == 0
    assert evaluate.main(["run=tiny", *places, "workers=1"]) == 0
    new = ["run=tiny", *places, f"root={patients}", "workers=1"]
    assert score.main(new) == 0
    cohort = choose_trained(tmp_path / "runs" / "tiny", None).lineage["cohort"]
    rows = read_manifest(tmp_path / "data" / "raw" / cohort / "manifest.csv")
    new = [*new[:3], f"scans=[{rows.loc[rows['split'] == 'test', 'image'].iloc[0]}]", "workers=1"]
    assert calibrate.main([*new, "site=here", f"out={tmp_path / 'calibrated'}", "false_positive_rate=0.5"]) == 0
    told = capfd.readouterr()
    assert list((tmp_path / "runs" / "tiny").rglob("report.html"))
    assert list(tmp_path.rglob("*.wandb"))
    assert not found_in(tmp_path, told.out, told.err)
