"""Two real heads through all steps. They are not in the repository; see tests/conftest.py."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from anomaly3d.cli import CONF
from anomaly3d.preprocessing.pipeline import Settings, judge, prepare_volume
from anomaly3d.preprocessing.template import build_template
from anomaly3d.preprocessing.volume import Volume, read_dicom, read_scan, resample

HEADS = ("ct_head.nii.gz", "ge_tilt18p5_deskewed_4mm.nii.gz")


@pytest.mark.parametrize("name", HEADS)
def test_a_real_head_comes_out_in_mni_space_without_its_skull(scans, tmp_path_factory, name):
    settings = Settings.from_config(yaml.safe_load((Path(CONF) / "preprocessing" / "ncct.yaml").read_text()))
    prepared = prepare_volume(read_scan(scans / name), settings, build_template(tmp_path_factory.mktemp("template")))
    assert judge(prepared.quality, settings.quality) == []
    image, mask = prepared.image, prepared.brain_mask > 0
    assert image.shape == (64, 64, 64)
    assert image.min() == -1
    assert (image[~mask] < -0.4).mean() > 0.97  # nothing but smoothing outside
    assert -0.35 < np.median(image[mask]) < 0.1  # 19 to 46 HU
    reference = nib.load(scans / "mni_reference" / "sc_brainmask_2mm_from_priors.nii.gz")
    volume = Volume(np.asarray(reference.dataobj, np.float32), reference.affine)
    expected = resample(volume, prepared.affine, (64, 64, 64)) > 0.5
    assert 2 * (mask & expected).sum() / (mask.sum() + expected.sum()) > 0.90


def test_a_tilted_and_uneven_series_is_refused_in_words(scans):
    from anomaly3d.errors import UnreadableScan

    with pytest.raises(UnreadableScan, match=r"unevenly spaced|gantry tilt"):
        read_dicom(scans / "ge_tilted_dicom")
