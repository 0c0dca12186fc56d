import base64
import gzip
import io

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly3d.report import viewer
from anomaly3d.report.page import found, script_safe
from anomaly3d.report.viewer import Shown, eight_bits, pack, pick, pictures, thumbnail
from anomaly3d.scans.nifti import spacing_of
from anomaly3d.scans.volume import three_planes

SHAPE = (6, 5, 4)


@pytest.fixture
def scan(tmp_path):
    """A prepared scan, its reconstruction, its masks: rows of a manifest."""
    rng = np.random.default_rng(0)
    volumes = {
        "image": rng.uniform(-1, 1, SHAPE).astype(np.float32),
        "reconstruction": rng.uniform(-1, 1, SHAPE).astype(np.float32),
        "brain_mask": (rng.random(SHAPE) < 0.7).astype(np.uint8),
        "lesion_mask": (rng.random(SHAPE) < 0.2).astype(np.uint8),
    }
    row = {"mass_effect_mask": ""}
    for name, volume in volumes.items():
        path = tmp_path / name / "a.nii.gz"
        path.parent.mkdir()
        nib.save(nib.Nifti1Image(volume, np.diag([2.5, 3, 3.5, 1])), path)
        row[name] = str(path)
    return row, volumes


def test_a_packed_scan_holds_its_volumes(scan, tmp_path):
    row, volumes = scan
    made = pack(Shown(row, tmp_path / "reconstruction" / "a.nii.gz"))
    data = np.frombuffer(gzip.decompress(base64.b64decode(made["data"])), np.uint8)
    image, reconstruction, bits = (part.reshape(SHAPE, order="F") for part in data.reshape(3, -1))
    assert made["shape"] == list(SHAPE)
    assert made["affine"][2] == [0, 0, 3.5, 0]
    np.testing.assert_allclose(image / 127.5 - 1, volumes["image"], atol=1 / 255 + 1e-6)
    np.testing.assert_array_equal(reconstruction, eight_bits(volumes["reconstruction"]))
    np.testing.assert_array_equal(bits & 1, volumes["brain_mask"])
    lesion = volumes["lesion_mask"] > 0
    outline = (bits & 2) > 0
    assert not (outline & lesion).any()  # it lies around the lesion, every voxel of it beside one
    assert (outline <= ndimage.binary_dilation(lesion)).all()
    assert outline.sum() == ndimage.binary_dilation(lesion).sum() - lesion.sum()
    assert lesion[tuple(made["finding"])]
    assert (bits & 4 == 0).all()


def test_misses_and_false_alarms_come_first():
    table = pd.DataFrame({"scan_id": list("abcdef"), "label": list("010101"), "total": [0.1, 0.2, 0.9, 0.3, 0.2, 0.8]})
    flagged = table["total"] > 0.5
    chosen = pick(table, flagged, 3)
    assert chosen == ["d", "c", "b"] or chosen[:2] == ["d", "c"]
    assert set(pick(table, flagged)) == set("abcdef")


def test_volumes_stop_at_the_budget_and_thumbnails_do_not(scan, tmp_path, monkeypatch):
    row, volumes = scan
    table = pd.DataFrame({"scan_id": ["a"], "label": ["1"], "total": [1.0]})
    scans = {"a": Shown(row, tmp_path / "reconstruction" / "a.nii.gz")}
    thumbnails, packed = pictures(table, pd.Series([False]), scans)
    assert list(thumbnails) == list(packed) == ["a"]
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(thumbnails["a"])))
    height, width = three_planes(volumes["image"], spacing_of(row["image"]))[0].shape
    assert image.shape[:2] == (height, 2 * width)
    monkeypatch.setattr(viewer, "BUDGET", 10)
    assert pictures(table, pd.Series([False]), scans)[1] == {}


def test_without_a_reconstruction_the_residual_is_empty(scan):
    row, volumes = scan
    data = gzip.decompress(base64.b64decode(pack(Shown(row, None))["data"]))
    image, reconstruction, _ = np.frombuffer(data, np.uint8).reshape(3, -1)
    np.testing.assert_array_equal(image, reconstruction)
    np.testing.assert_array_equal(image, eight_bits(volumes["image"]).ravel(order="F"))


def test_the_patients_right_is_on_the_left_of_a_thumbnail(scan, tmp_path, monkeypatch):
    """Every plane that is shown comes from ``three_planes``: +x is the patient's right."""
    row, volumes = scan
    monkeypatch.setattr(viewer, "mark_sides", lambda picture, value: picture)
    made = thumbnail(Shown(row, tmp_path / "reconstruction" / "a.nii.gz"))
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(made)))[..., 0]
    grey, spacing = (volumes["image"] + 1) / 2, spacing_of(row["image"])
    shown = [three_planes(grey, spacing, (0, 0, z))[0] for z in range(SHAPE[2])]
    width = shown[0].shape[1]
    assert min(np.abs(picture[:, :width] - plane).max() for plane in shown) < 1 / 255 + 1e-3


def test_outcomes_in_words():
    assert found("1", False) == "missed"
    assert found("0", True) == "false alarm"
    assert found("", True) == "flagged"


def test_nothing_in_a_script_ends_it():
    assert "</" not in script_safe("if (a) '</script><!--'")
