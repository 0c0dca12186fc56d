import numpy as np
import pytest

from anomaly3d.errors import UserError
from anomaly3d.scans.nifti import save_volume, voxels


@pytest.mark.parametrize("damage", ["changed", "cut", "text", "empty"])
def test_a_damaged_volume_is_a_sentence_with_its_name(tmp_path, damage):
    path, data = tmp_path / "a.nii.gz", np.random.default_rng(0).normal(size=(7, 5, 6)).astype(np.float32)
    save_volume(path, data, np.diag([1.0, 2.0, 3.0, 1.0]))
    np.testing.assert_array_equal(voxels(path), data)
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :]
    path.write_bytes({"changed": changed, "cut": whole[:middle], "text": b"hello", "empty": b""}[damage])
    with pytest.raises(UserError, match=r"a\.nii\.gz is damaged .*remove it"):
        voxels(path)


def test_a_volume_that_is_not_there_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        voxels(tmp_path / "none.nii.gz")
