"""Whatever is damaged: a scan, or a reason in words; nothing else, and soon."""

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anomaly3d.errors import UnreadableScan
from anomaly3d.scans.readers import read_ct
from tests.damage import damaged
from tests.writers import small_head, write_series

HEAD = small_head()
RAW = HEAD.to_bytes()


def reads_or_says_why(path):
    """A volume in HU, or ``UnreadableScan``; any other exception fails the test."""
    try:
        scan = read_ct(path)
    except UnreadableScan:
        return
    assert np.isfinite(scan.data).all()
    assert np.isfinite(scan.affine).all()


@pytest.mark.parametrize("seed", range(72))
def test_damaged_inputs_of_every_kind(tmp_path, seed):
    kind = damaged(seed, tmp_path / "in", HEAD)
    files = list((tmp_path / "in").iterdir())
    reads_or_says_why(tmp_path / "in" if "dicom" in kind or len(files) != 1 else files[0])


@settings(max_examples=150, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), max_size=12),
    keep=st.none() | st.integers(0, len(RAW)),
    packed=st.booleans(),
)
def test_any_header_of_a_nifti_file(tmp_path, changes, keep, packed):
    raw = bytearray(RAW)
    for where, value in changes:
        raw[where] = value
    made = bytes(raw[:keep])
    (tmp_path / "a.nii").write_bytes(gzip.compress(made, 1) if packed else made)
    reads_or_says_why(tmp_path / "a.nii")


@settings(max_examples=40, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_any_header_of_a_dicom_slice(tmp_path_factory, data):
    place = tmp_path_factory.mktemp("dicom")
    path = write_series(place, HEAD)[data.draw(st.integers(0, HEAD.shape[2] - 1))]
    raw = bytearray(path.read_bytes())
    for where, value in data.draw(st.lists(st.tuples(st.integers(132, 1400), st.integers(0, 255)), max_size=8)):
        raw[where] = value
    path.write_bytes(raw)
    reads_or_says_why(place)
