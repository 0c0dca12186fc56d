import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from anomaly3d.evaluation.localization import false_parts, locate, locate_scan, summarise_localization
from anomaly3d.scoring.anomaly_maps import Healthy, ScanMaps
from anomaly3d.scoring.calibration import voxel_quantiles

SHAPE = (14, 11, 9)


@pytest.fixture
def scan():
    """A brain with two lesions, of which a noisy map shows the first."""
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[1:-1, 1:-1, 1:-1] = True
    truth = np.zeros(SHAPE, bool)
    truth[2:5, 2:5, 2:5] = truth[9:12, 6:9, 5:7] = True
    anomaly = rng.random(SHAPE)
    anomaly[2:5, 2:5, 2:5] += 2
    anomaly[9:12, 6:9, 5:7] *= 0.5
    return anomaly, truth, brain


def test_numbers_agree_with_scikit_learn(scan):
    anomaly, truth, brain = scan
    found = locate(anomaly, truth, brain, 1.5)
    assert found["auroc"] == pytest.approx(roc_auc_score(truth[brain], anomaly[brain]))
    assert found["dice"] == pytest.approx(f1_score(truth[brain], anomaly[brain] >= 1.5))
    assert found["chance_ap"] == pytest.approx(truth.sum() / brain.sum())
    assert (found["lesions"], found["found"]) == (2, 1)


def test_what_lies_outside_of_the_brain_does_not_count(scan):
    anomaly, truth, brain = scan
    anomaly[0], truth[0] = 99, True
    assert locate(anomaly, truth, brain, 1.5)["lesions"] == 2
    assert locate(anomaly, truth & ~brain, brain, 1.5) is None


def test_crumbs_are_not_lesions(scan):
    anomaly, truth, brain = scan
    truth[6, 6, 1] = True
    assert locate(anomaly, truth, brain, 1.5)["lesions"] == 2


def test_without_a_threshold_there_is_what_needs_none(scan):
    anomaly, truth, brain = scan
    found = locate(anomaly, truth, brain, None)
    assert set(found) == {"auroc", "ap", "chance_ap"}
    assert found["auroc"] == locate(anomaly, truth, brain, 1.5)["auroc"]
    row = {"map": "residual", "mask": "lesion_mask", "scan_id": "a", "subject_id": "a", **found}
    summary = summarise_localization(pd.DataFrame([row]))
    assert set(summary["lesion_mask"]["residual"]) == {"n_scans", "auroc", "ap", "chance_ap"}


def test_far_below_0_a_logit_is_healthy(scan, tmp_path):
    _, truth, brain = scan
    rng = np.random.default_rng(1)
    volumes = {"image": rng.random(SHAPE), "brain": brain, "truth": truth, "lesion": truth}
    volumes["contrast"] = np.where(truth, 3, -7 + rng.random(SHAPE))
    volumes["healthy"] = -7 + rng.random(SHAPE)
    files = {}
    for name, data in volumes.items():
        files[name] = str(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(data.astype(np.float32), np.diag([10, 10, 10, 1])), files[name])
    ill, healthy = (
        ScanMaps("a", files["image"], "", files["brain"], {"contrast": files[name]}) for name in ("contrast", "healthy")
    )
    usual = Healthy(0, np.zeros(()), {}, {}, {}).plus(healthy.read(), 1)
    levels = voxel_quantiles(healthy, usual, 10.0, ())
    assert levels["contrast"] < -6
    found = {row["map"]: row for row in locate_scan(ill, {"lesion_mask": files["lesion"]}, usual, levels)}
    assert found["contrast"]["auroc"] > 0.99
    assert found["contrast"]["found"] == 2


def test_false_parts_of_a_healthy_scan(scan):
    anomaly, _, brain = scan
    assert false_parts(anomaly, brain, 1.5) == 1
    assert false_parts(anomaly, brain, 9) == 0


def test_the_summary_is_by_mask_and_map():
    row = {"map": "residual", "mask": "lesion_mask", "ap": 0.5, "chance_ap": 0.1, "dice": 0.3}
    rows = pd.DataFrame(
        [
            {**row, "scan_id": "a", "subject_id": "a", "auroc": 0.6, "lesions": 1, "found": 1},
            {**row, "scan_id": "b", "subject_id": "b", "auroc": 0.8, "lesions": 3, "found": 1},
            {"scan_id": "c", "subject_id": "c", "map": "residual", "mask": "", "false_parts": 4},
        ]
    )
    found = summarise_localization(rows)
    assert found["lesion_mask"]["residual"]["auroc"]["value"] == pytest.approx(0.7)
    assert found["lesion_mask"]["residual"]["found"]["value"] == pytest.approx(2 / 4)
    assert found["healthy_false_parts"]["residual"] == {"value": 4, "ci95": None, "n_scans": 1}
