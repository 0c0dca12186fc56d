import base64
import gzip
import io
from dataclasses import replace

import matplotlib.image
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly3d.report import viewer
from anomaly3d.report.page import found, script_safe
from anomaly3d.report.viewer import Shown, eight_bits, finding, pack, pick, pictures, signed_bytes, thumbnail
from anomaly3d.scans.nifti import spacing_of
from anomaly3d.scans.volume import three_planes
from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, RawMaps, ScanMaps, standardised_maps

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
    files = ScanMaps("a", row["image"], row["reconstruction"], row["brain_mask"])
    healthy = Healthy(0, np.zeros(()), {}, {}, {})
    for _ in range(3):
        noise = rng.normal(0, 0.3, SHAPE).astype(np.float32)
        healthy = healthy.plus(RawMaps({RESIDUAL: noise}, volumes["brain_mask"] > 0), 1)
    return Shown(row, files, healthy), volumes


def test_a_packed_scan_holds_its_volumes(scan):
    shown, volumes = scan
    made = pack(shown)
    data = np.frombuffer(gzip.decompress(base64.b64decode(made["data"])), np.uint8)
    image, reconstruction, deviation, bits = (part.reshape(SHAPE, order="F") for part in data.reshape(4, -1))
    raw = volumes["image"] - volumes["reconstruction"]
    z = standardised_maps(RawMaps({RESIDUAL: raw}, volumes["brain_mask"] > 0), shown.healthy)["standardised"]
    assert np.abs(z).max() > 1
    np.testing.assert_allclose((deviation.astype(float) - 128) / 127 * 8, z.clip(-8, 8), atol=8 / 254 + 1e-6)
    assert (deviation[volumes["brain_mask"] == 0] == 128).all()
    assert made["shape"] == list(SHAPE)
    assert made["affine"][2] == [0, 0, 3.5, 0]
    np.testing.assert_allclose(image / 127.5 - 1, volumes["image"], atol=1 / 255 + 1e-6)
    np.testing.assert_array_equal(reconstruction, eight_bits(volumes["reconstruction"]))
    np.testing.assert_array_equal(bits & 1, volumes["brain_mask"])
    lesion = volumes["lesion_mask"] > 0
    assert np.abs(z)[tuple(made["finding"])] == np.abs(z)[lesion].max()
    outline = (bits & 2) > 0
    assert not (outline & lesion).any()  # it lies around the lesion, every voxel of it beside one
    assert (outline <= ndimage.binary_dilation(lesion)).all()
    assert outline.sum() == ndimage.binary_dilation(lesion).sum() - lesion.sum()
    assert (bits & 4 == 0).all()


def test_misses_and_false_alarms_come_first():
    table = pd.DataFrame({"scan_id": list("abcdef"), "label": list("010101"), "peak": [0.1, 0.2, 0.9, 0.3, 0.2, 0.8]})
    table["total"] = -table["peak"]
    flagged = table["peak"] > 0.5
    assert pick(table, "peak", flagged, 2) == ["d", "c"]
    assert pick(table, "total", flagged, 2) == ["b", "c"]
    assert set(pick(table, "peak", flagged)) == set("abcdef")


def test_volumes_stop_at_the_budget_and_thumbnails_do_not(scan, monkeypatch):
    shown, volumes = scan
    table = pd.DataFrame({"scan_id": ["a"], "label": ["1"], "total": [1.0]})
    thumbnails, packed = pictures(table, "total", None, {"a": shown})
    assert list(thumbnails) == list(packed) == ["a"]
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(thumbnails["a"])))
    height, width = three_planes(volumes["image"], spacing_of(shown.row["image"]))[0].shape
    assert image.shape[:2] == (height, 2 * width)
    monkeypatch.setattr(viewer, "BUDGET", 10)
    assert pictures(table, "total", pd.Series([False]), {"a": shown})[1] == {}


def test_without_a_map_residual_and_deviation_are_empty_and_not_shown(scan):
    shown, volumes = scan
    assert pack(shown)["layers"] == ["reconstruction", "residual", "standardised"]
    assert Shown(shown.row, shown.files, None).layers == ["reconstruction", "residual"]
    assert Shown(shown.row, replace(shown.files, reconstruction=""), shown.healthy).layers == ["standardised"]
    without = Shown(shown.row, None, shown.healthy)
    image, both = (
        matplotlib.image.imread(io.BytesIO(base64.b64decode(thumbnail(one)))).shape for one in (without, shown)
    )
    assert 2 * image[1] == both[1]
    made = pack(without)
    assert made["layers"] == []
    data = gzip.decompress(base64.b64decode(made["data"]))
    image, reconstruction, deviation, _ = np.frombuffer(data, np.uint8).reshape(4, -1)
    assert (deviation == 128).all()
    np.testing.assert_array_equal(image, reconstruction)
    np.testing.assert_array_equal(image, eight_bits(volumes["image"]).ravel(order="F"))


def test_without_a_map_a_scan_opens_in_its_lesion():
    lesion = np.zeros((9, 8, 7), bool)
    lesion[2:7, 1:6, 1:6] = True
    assert finding(np.zeros(lesion.shape), lesion) == [4, 3, 3]
    assert finding(np.zeros(lesion.shape), np.zeros(1, bool)) == [4, 4, 3]


def test_a_map_in_bytes_keeps_its_zero_and_its_sign():
    assert signed_bytes(np.array([-99, -8, -0.01, 0, 0.01, 8, 99])).tolist() == [1, 1, 128, 128, 128, 255, 255]


def test_the_patients_right_is_on_the_left_of_a_thumbnail(scan, monkeypatch):
    """Every plane that is shown comes from ``three_planes``: +x is the patient's right."""
    shown, volumes = scan
    monkeypatch.setattr(viewer, "mark_sides", lambda picture, value: picture)
    made = thumbnail(shown)
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(made)))[..., 0]
    grey, spacing = (volumes["image"] + 1) / 2, spacing_of(shown.row["image"])
    planes = [three_planes(grey, spacing, (0, 0, z))[0] for z in range(SHAPE[2])]
    width = planes[0].shape[1]
    assert min(np.abs(picture[:, :width] - plane).max() for plane in planes) < 1 / 255 + 1e-3


def test_outcomes_in_words():
    assert found("1", False) == "missed"
    assert found("0", True) == "false alarm"
    assert found("", True) == "flagged"


def test_nothing_in_a_script_ends_it():
    assert "</" not in script_safe("if (a) '</script><!--'")
