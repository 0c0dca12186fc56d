import nibabel as nib
import numpy as np
import pytest

from anomaly3d.scoring.anomaly_maps import ScanMaps
from tests.scoring.toys import SHAPE


@pytest.fixture
def maps(tmp_path):
    """Three scans: reconstructions of zeros, images of noise; the second has a bright, the third a dark cube."""
    rng = np.random.default_rng(0)
    found = []
    for name, lesion in (("a", 0.0), ("b", 0.8), ("c", -0.8)):
        image = rng.normal(0, 0.05, SHAPE)
        image[4:8, 4:8, 3:7] += lesion
        brain = np.zeros(SHAPE)
        brain[1:-1, 1:-1, 1:-1] = 1
        paths = []
        for kind, data in (("image", image), ("reconstruction", np.zeros(SHAPE)), ("brain", brain)):
            paths.append(str(tmp_path / f"{kind}-{name}.nii.gz"))
            nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), paths[-1])
        found.append(ScanMaps(name, *paths))
    return found
