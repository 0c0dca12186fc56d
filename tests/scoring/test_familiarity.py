"""What a scan is like, and whether the detector has seen its like."""

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from anomaly3d.errors import UserError
from anomaly3d.scoring.familiarity import Familiar, input_statistics


def kept(folder, name, rim, deep):
    """A prepared scan: a box of brain whose outer 4 mm have other values; voxels of 2 x 2 x 4 mm."""
    x = np.full((20, 22, 14), -1, np.float32)
    x[2:18, 2:20, 2:12] = rim
    x[4:16, 4:18, 3:11] = deep
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    paths = {"image": folder / f"{name}.nii.gz", "brain_mask": folder / f"{name}-mask.nii.gz"}
    nib.save(nib.Nifti1Image(x, affine), paths["image"])
    nib.save(nib.Nifti1Image((x > -1).astype(np.uint8), affine), paths["brain_mask"])
    return {"scan_id": name, **{k: str(v) for k, v in paths.items()}}


def test_statistics_are_medians_by_depth_and_quality_numbers(tmp_path):
    rows = pd.DataFrame([kept(tmp_path, "a", 0.5, 0.25), kept(tmp_path, "b", -0.5, 0.0)])
    quality = pd.DataFrame({"scan_id": ["b", "a"], "noise_hu": [3.0, 2.0], "slices": [40, 30], "age": [80, 30]})
    found = input_statistics(rows, quality, ["noise_hu", "slices"], 1).set_index("scan_id")
    assert found.loc["a", ["rim", "deep", "noise_hu"]].tolist() == pytest.approx([0.5, 0.25, 2.0])
    assert found.loc["b", ["rim", "deep", "noise_hu"]].tolist() == pytest.approx([-0.5, 0.0, 3.0])
    assert set(found) == {"rim", "below_rim", "deep", "noise_hu"}  # not how many slices, not how old


def test_what_lies_beyond_the_training_scans_is_said_in_units(ncct, tmp_path):
    rng = np.random.default_rng(0)
    trained = pd.DataFrame({"scan_id": range(50), "noise_hu": rng.uniform(2, 3, 50), "rim": rng.uniform(-0.1, 0.1, 50)})
    familiar = Familiar.measure(trained)
    assert familiar.unlike(pd.Series({"noise_hu": 2.5, "rim": 0.0}), ncct) == ""
    assert familiar.unlike(pd.Series({"noise_hu": 3.2, "rim": np.nan}), ncct) == ""  # a little beyond is no wonder
    told = familiar.unlike(pd.Series({"noise_hu": 4.6, "rim": 0.5}), ncct)
    assert told.startswith("noise_hu 4.6 (trained with 1.")
    assert "; rim 70 (trained with " in told  # HU: 0.5 of [-1, 1] in a window from -20 to 100
    familiar.save(tmp_path / "inputs.json")
    assert Familiar.load(tmp_path / "inputs.json").unlike(pd.Series({"noise_hu": 4.6, "rim": 0.5}), ncct) == told


def test_of_few_training_scans_nothing_is_known(ncct, tmp_path):
    few = pd.DataFrame({"scan_id": range(4), "noise_hu": [1.0, 2.0, 3.0, 4.0]})
    assert Familiar.measure(few).unlike(pd.Series({"noise_hu": 99.0}), ncct) == ""
    assert Familiar.load(tmp_path / "none.json").ranges == {}


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "inputs.json").write_text('{"rim": [0.1')
    with pytest.raises(UserError, match=r"inputs\.json is damaged: run .python -m anomaly3d\.evaluate. again"):
        Familiar.load(tmp_path / "inputs.json")
    assert Familiar.load(tmp_path / "none.json").ranges == {}
