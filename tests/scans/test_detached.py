"""A header beside its voxels: both are what a scan is known by."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from anomaly3d.errors import UnreadableScan
from anomaly3d.preprocessing.outcome import Outcome, Sources, adopted, finished, keep
from anomaly3d.scans.detached import named_files, voxel_files
from anomaly3d.scans.readers import read_image


def write(path, value):
    """A volume as a header and its voxels, without compression so that only the voxels tell the value."""
    data = np.full((9, 8, 10), value, np.int16)
    if path.suffix == ".hdr":
        nib.save(nib.nifti1.Nifti1Pair(data, np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(data), str(path))


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "a.hdr"])
def test_other_voxels_under_the_same_header_are_another_scan(tmp_path, name):
    here, there = tmp_path / "site 1" / name, tmp_path / "site 2" / name
    for path, value in ((here, 1), (there, 7)):
        path.parent.mkdir()
        write(path, value)
    assert here.read_bytes() == there.read_bytes()
    assert [file.name != name for file in voxel_files(here)] == [True]
    assert np.asarray(read_image(there).dataobj).max() == 7
    first, second = (Sources("a", str(path)) for path in (here, there))
    assert first.digest() != second.digest()
    out = tmp_path / "data" / "cohort 1" / "hash"
    keep(Outcome("a", "", {}, first.fingerprint(out), digest=first.digest()), out)
    assert finished(first, out)
    assert adopted(second, tmp_path / "data" / "cohort 2" / "hash") is None
    (voxels,) = voxel_files(here)
    voxels.write_bytes(voxel_files(there)[0].read_bytes())
    assert finished(first, out) is None
    assert adopted(first, out) is None


def test_a_list_and_a_pattern_name_many_files(tmp_path):
    for number in range(1, 5):
        (tmp_path / f"s{number:02d}.raw").write_bytes(bytes(9))
    whole = [f"s{number:02d}.raw" for number in range(1, 5)]
    header = tmp_path / "a.mhd"
    for said, names in {
        "ElementDataFile = LIST\ns01.raw\ns02.raw\ns03.raw\ns04.raw\n": whole,
        "NDims = 3\nElementDataFile = s%02d.raw 1 4 1\n": whole,
        "ElementDataFile = s%02d.raw 4 1 -1": whole[::-1],
        "ElementDataFile = s01.raw\r\n": whole[:1],
        "ElementDataFile = LOCAL\nElementDataFile = s01.raw": [],
        "ElementDataFile = s%02d.raw one two three": ["s%02d.raw one two three"],
    }.items():
        header.write_bytes(said.encode())
        assert named_files(header) == names
        assert [file.name for file in voxel_files(header)] == [name for name in names if (tmp_path / name).exists()]
    nrrd = tmp_path / "a.nhdr"
    nrrd.write_bytes(b"NRRD0004\ndata file: LIST\ns01.raw\ns03.raw\n")
    assert named_files(nrrd) == ["s01.raw", "s03.raw"]
    nrrd.write_bytes(b"NRRD0004\nsizes: 3 3 3\n\ndata file: s01.raw")
    assert named_files(nrrd) == [], "what lies behind the empty line is voxels"


@pytest.mark.parametrize("name", ["../voxels.raw", "{elsewhere}/voxels.raw"])
def test_voxels_outside_of_the_headers_folder_are_refused_and_not_looked_at(tmp_path, name):
    write(tmp_path / "voxels.mhd", 3)
    header = tmp_path / "study" / "a.mhd"
    header.parent.mkdir()
    text = (tmp_path / "voxels.mhd").read_text().replace("voxels.raw", name.format(elsewhere=tmp_path))
    header.write_text(text)
    with pytest.raises(UnreadableScan, match="outside of its own folder"):
        read_image(header)
    assert voxel_files(header) == []
