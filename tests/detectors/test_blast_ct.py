"""Label maps as blast-ct writes them, from the manifest to the score of a scan."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly3d.cohorts.manifest import ManifestCohort
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.blast_ct import BlastCT
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import Study
from anomaly3d.scoring.inference import Inference
from tests.toys.preprocessor import Standardised
from tests.writers import noise_cohort, small_head

CPU = {
    "_target_": "lightning.Trainer",
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
}


def test_its_label_maps_go_the_scans_way_and_count_in_ml(tmp_path):
    """Three of its classes, written as float64 on the scan's grid; the lesion mask has the same voxels."""
    head = small_head(1)
    labels = np.zeros(head.shape)
    labels[20:40, 25:45, 11:13], labels[40:46, 25:45, 11:13], labels[30, 30, 8] = 1, 3, 4
    files = {"image": head, "segmentation": nib.Nifti1Image(labels, head.affine)}
    files["lesion_mask"] = nib.Nifti1Image((labels > 0).astype(np.uint8), head.affine)
    for name, image in files.items():
        nib.save(image, tmp_path / f"{name}.nii.gz")
    row = {"scan_id": "a", "subject_id": "p", "label": "1", "split": "test"} | {n: f"{n}.nii.gz" for n in files}
    pd.DataFrame([row]).to_csv(tmp_path / "manifest.csv", index=False)
    study = Study(ManifestCohort("m", f"{tmp_path}/manifest.csv"), Standardised(16, 3.0, {}), tmp_path / "data")
    (found,) = study.prepare().table.to_dict("records")
    voxels = 20 * 20 * 2 + 6 * 20 * 2 + 1
    ml = voxels * abs(np.linalg.det(head.affine[:3, :3])) / 1000
    assert float(found["segmentation_ml"]) == pytest.approx(ml, abs=1e-3)
    mapped, lesion = (nib.load(found[name]).get_fdata() for name in ("segmentation", "lesion_mask"))
    assert lesion.sum() > 20
    np.testing.assert_array_equal(mapped, lesion)


@pytest.fixture
def data(tmp_path):
    """Three test scans with label maps, and a validation scan without."""
    prepared = noise_cohort(tmp_path, 8, test=3, validation=1)
    marked = prepared.table["split"] == "test"
    prepared.table.loc[marked, "segmentation"] = prepared.table.loc[marked, "lesion_mask"]
    prepared.table.loc[marked, "segmentation_ml"] = ["0.000", "12.500", "3.250"]
    module = HeadCTDataModule(prepared, 2)
    module.setup()
    return module


def test_a_scan_is_scored_by_what_is_marked_in_it(data, tmp_path):
    table = Inference(data, CPU).run(BlastCT(), "test", tmp_path / "out", volumes=True)
    assert table["total"].tolist() == [0, 12.5, 3.25]
    for row in data.split("test").to_dict("records"):
        written = nib.load(tmp_path / "out" / "maps" / "segmentation" / f"{row['scan_id']}.nii.gz").get_fdata()
        np.testing.assert_array_equal(written, nib.load(row["segmentation"]).get_fdata())


def test_a_scan_without_a_label_map_is_a_sentence(data, tmp_path):
    data.prepared.table.loc[data.prepared.table["scan_id"] == "s1", "segmentation"] = ""
    with pytest.raises(UserError, match=r"column segmentation of the manifest.* 1 of 3 test scans .*first is s1"):
        Inference(data, CPU).run(BlastCT(), "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_asked_of_validation_scans_while_it_trains(data):
    data.reads = BlastCT.reads
    (batch,) = data.val_dataloader()
    assert BlastCT().quick_score(batch).tolist() == [0]
