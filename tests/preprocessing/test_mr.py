"""MR heads: bias field, z, mask and pose by known answers, and a phantom's whole way."""

from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from scipy.spatial.transform import Rotation

from anomaly3d.atlas.template import build_template, load_template
from anomaly3d.cli import CONF
from anomaly3d.cohorts.phantom.faults import transform_fault
from anomaly3d.cohorts.phantom.generate import best_affine, generate
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.preprocessing import mr
from anomaly3d.preprocessing.base import Companions
from anomaly3d.preprocessing.crop import working_grid
from anomaly3d.preprocessing.mutual_information import refine
from anomaly3d.preprocessing.scan import digest_of
from anomaly3d.scans.readers import read_mask, read_mr
from anomaly3d.scans.volume import Volume, resample
from anomaly3d.system.instantiate import build

COARSE = {"resolution": 32, "working_spacing": 3.0, "registration_enough": 0.0}  # one start: time counts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mr")


@pytest.fixture(scope="module")
def made(folder):
    """A preprocessor of the config with changes, ready to be used."""

    def make(weighting, **changes):
        config = yaml.safe_load((Path(CONF) / "preprocessing" / f"{weighting}.yaml").read_text())
        preprocessor = build({**config, **COARSE, **changes}, "preprocessing config")
        preprocessor.setup(folder)
        return preprocessor

    return make


@pytest.fixture(scope="module")
def phantoms():
    """The same head with a tumour, by weighting."""
    return {w: generate((8, 8), ["tumour"], matrix=96, slices=40, modality=w) for w in mr.WEIGHTINGS}


def read(folder, phantom):
    """As ``read_mr`` reads it."""
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(phantom.hu, phantom.affine), path)
    return read_mr(path)


@pytest.fixture(scope="module")
def results(folder, made, phantoms):
    """These heads prepared with their lesions, by weighting."""
    found = {}
    for weighting, phantom in phantoms.items():
        lesion = Volume(phantom.lesion.astype(np.float32), phantom.affine)
        found[weighting] = made(weighting).prepare(read(folder, phantom), Companions(masks={"lesion_mask": lesion}))
    return found


def off_by(found, true):
    """Mean mm over the corners of a box in the brain."""
    corners = np.array(np.meshgrid((-60, 60), (-90, 60), (-40, 60), (1,))).reshape(4, -1)
    return np.linalg.norm(((found - true) @ corners)[:3], axis=0).mean()


@pytest.mark.parametrize("weighting", mr.WEIGHTINGS)
def test_a_head_on_mr_comes_out_in_mni_space_without_its_skull(made, phantoms, results, weighting):
    preprocessor, phantom, prepared = made(weighting), phantoms[weighting], results[weighting]
    assert preprocessor.judge(prepared.quality) == []
    assert off_by(prepared.mni_to_scan, best_affine(phantom.subject, phantom.scan)) < 7
    inside, tumour = prepared.brain_mask > 0, prepared.extra["lesion_mask"] > 0
    cavity = Volume(phantom.intracranial.astype(np.float32), phantom.affine)
    true = resample(cavity, prepared.affine, (32, 32, 32), prepared.mni_to_scan) > 0.5
    assert 2 * (inside & true).sum() / (inside.sum() + true.sum()) > 0.9
    assert (prepared.image[~inside] < -0.4).mean() > 0.95  # nothing but smoothing outside
    z = preprocessor.to_physical(prepared.image)
    off = z[tumour].mean() - np.median(z[inside])
    assert off < -0.1 if weighting == "t1w" else off > 0.4


def test_the_wrong_weighting_is_noticed(folder, made, phantoms, results):
    quality = results["t1w"].quality
    assert quality["grey_z"] < -0.5  # grey matter is darker than white
    wrong = {**quality, "grey_z": 0.5}
    assert made("t1w").judge(wrong) == [
        "grey over white matter is not as in this weighting, in z: 0.5, wanted at most -0.2"
    ]
    found = made("t1w").prepare(read(folder, phantoms["t2w"]), Companions())
    assert made("t1w").judge(found.quality)


def test_what_the_scan_does_not_show_is_no_brain(folder, made, phantoms):
    phantom = phantoms["t1w"]
    whole = read(folder, phantom)
    keep = int(whole.data.shape[2] * 0.8)  # the vertex is cut off
    cut = made("t1w").prepare(Volume(whole.data[..., :keep], whole.affine), Companions())
    voxels = np.argwhere(cut.brain_mask > 0)
    world = nib.affines.apply_affine(cut.mni_to_scan @ cut.affine, voxels)
    height = nib.affines.apply_affine(np.linalg.inv(whole.affine), world)[:, 2]
    step = np.linalg.norm(cut.affine[:3, 2]) / whole.spacing[2]
    assert height.max() < keep + step
    assert np.median(cut.image[cut.brain_mask > 0]) > -0.6


def test_a_pose_beside_the_scan_is_left_as_it_is(folder):
    template, inner_table = load_template(build_template(folder, "t1w"))
    far = np.eye(4)
    far[:3, 3] = 5000
    np.testing.assert_array_equal(refine(template, template, inner_table.data < 3, far), far)


def test_scans_of_small_values_are_told_apart():
    noise = np.random.default_rng(0).random((2, 9, 9, 9)).astype(np.float32) * 0.4
    one, two = (digest_of(Volume(data, np.eye(4)), np.float32) for data in noise)
    assert one != two
    assert digest_of(Volume(noise[0], np.eye(4))) == digest_of(Volume(noise[1], np.eye(4)))  # as whole HU they are one


def test_a_mask_in_the_air_is_refused(folder, made, phantoms):
    scan = read(folder, phantoms["t1w"])
    corner = np.zeros(np.array(scan.data.shape) // 2, np.uint8)
    corner[:3, :3, :3] = 1
    affine = scan.affine @ np.diag([2, 2, 2, 1])
    nib.save(nib.Nifti1Image(corner, affine), folder / "mask.nii.gz")
    with pytest.raises(UnreadableScan, match=r"does not lie on the scan: .*% of it are in the head"):
        read_mask(folder / "mask.nii.gz", scan, made("t1w").air(scan))


def test_a_wrong_pose_is_noticed(folder, made, phantoms, results):
    preprocessor, scan = made("t1w"), read(folder, phantoms["t1w"])
    fault = transform_fault(np.random.default_rng(3))
    wrong = preprocessor.prepare(scan, Companions(transform_fault=fault)).quality
    right = results["t1w"].quality
    assert wrong["registration"] < right["registration"] - 0.1
    assert preprocessor.judge(right) == []
    assert preprocessor.judge(wrong)


def test_z_is_the_distance_to_the_median_in_half_of_what_lies_between_two_percentiles(made):
    preprocessor = made("t1w", bias_field=False)
    grey, white = mr.tissue_maps(3.0)
    mask = np.zeros(grey.shape, bool)
    mask[10:-10, 10:-10, 10:-10] = True
    tissue = mask & (grey + white > 0.8)
    signal = np.full(grey.shape, 5000.0)  # what is no tissue does not count
    signal[tissue] = np.linspace(100, 300, tissue.sum())
    z, field = preprocessor.standardised(signal, mask)
    assert (field == 1).all()
    np.testing.assert_allclose(z[tissue], (signal[tissue] - 200) / 68, atol=1e-3)  # 200 -+ 68 are 16 % and 84 %
    with pytest.raises(UnreadableScan, match="equally bright all over"):
        preprocessor.standardised(np.ones(grey.shape), mask)
    with pytest.raises(UnreadableScan, match="is this a head MR"):
        preprocessor.standardised(signal, np.zeros(grey.shape, bool))


def test_the_bias_field_is_found():
    grey, white = mr.tissue_maps(3.0)
    mask = grey + white > 0.5
    x = np.linspace(-1, 1, grey.shape[0])[:, None, None]
    true = np.exp(0.3 * x - 0.2 * x**2) * np.ones(grey.shape)
    signal = 400 * (white + 0.8 * grey) * true
    found = mr.bias_field(signal.astype(np.float32), mask, 3.0)
    assert found[mask].mean() == pytest.approx(1)
    assert (found / true)[mask].std() < 0.04  # 0.17 before


def test_a_pose_is_the_same_each_time(folder):
    template, inner_table = load_template(build_template(folder, "t1w"))
    start = np.eye(4)
    start[:3, 3] = 3, 2, 1
    once, again = (refine(template, template, inner_table.data < 3, start) for _ in range(2))
    np.testing.assert_allclose(once, again, atol=1e-9)  # sums of threads


def test_mutual_information_finds_the_last_millimetres(folder):
    template, inner_table = load_template(build_template(folder, "t1w"))
    known = np.eye(4)
    known[:3, :3] = Rotation.from_rotvec((3, -2, 4), degrees=True).as_matrix() * 1.02
    known[:3, 3] = 4, -3, 2
    affine = np.diag([2.0, 2, 3, 1])
    affine[:3, 3] = -100, -140, -90
    scan = Volume(1000 - 300 * resample(template, affine, (100, 130, 65), np.linalg.inv(known)), affine)
    assert off_by(np.eye(4), known) > 6
    assert off_by(refine(scan, template, inner_table.data < 3, np.eye(4)), known) < 0.6  # of inverted contrast


def test_masks_may_be_given_or_left_by_stripping(folder, made, phantoms, results):
    phantom = phantoms["t1w"]
    whole = read(folder, phantom)
    brain = resample(Volume(phantom.intracranial.astype(np.float32), phantom.affine), whole.affine, whole.data.shape)
    own, free = made("t1w"), results["t1w"]
    half = Volume((brain > 0.5) * np.float32(1), whole.affine)
    half.data[: half.data.shape[0] // 2] = 0
    given = own.prepare(whole, Companions(brain_mask=half, twin=whole))
    np.testing.assert_allclose(given.extra["twin"], given.image, atol=1e-3)  # the same scan, the same way
    assert np.ptp(given.image) > 1
    assert given.brain_mask.sum() < 0.65 * free.brain_mask.sum()
    left = Volume(whole.data * (brain > 0.5), whole.affine)
    with pytest.raises(UnreadableScan, match=r"set preprocessing\.stripped=true"):
        own.prepare(left, Companions())
    stripped = made("t1w", stripped=True).prepare(left, Companions())
    assert off_by(stripped.mni_to_scan, best_affine(phantom.subject, phantom.scan)) < 9
    both = (stripped.brain_mask > 0) & (free.brain_mask > 0)
    assert 2 * both.sum() / (stripped.brain_mask.sum() + free.brain_mask.sum()) > 0.88


def save(path, data, spacing=3.0):
    nib.save(nib.Nifti1Image(data, np.diag([spacing, spacing, spacing, 1])), path)
    return path


def test_what_is_no_mr_is_told(tmp_path):
    noise = np.random.default_rng(0).random((60, 70, 50)).astype(np.float32)
    said = {
        "is preprocessing=ncct meant": noise * 2000 - 1000,
        "as after a change to z-scores": noise - 0.1,
        "no value is above 0": np.zeros_like(noise),
        "NaN or infinite: replace them by 0": np.where(noise > 0.9, np.nan, noise),
    }
    for words, data in said.items():
        with pytest.raises(UnreadableScan, match=words):
            read_mr(save(tmp_path / "scan.nii.gz", data))
    with pytest.raises(UnreadableScan, match="millimetres"):
        read_mr(save(tmp_path / "scan.nii.gz", noise, 0.05))
    assert read_mr(save(tmp_path / "scan.nii.gz", noise - 0.04)).data.min() == 0
    far_below = np.where(noise < 0.01, -600, 20_000 * noise)  # what a spline leaves beside a bright eye
    assert read_mr(save(tmp_path / "scan.nii.gz", far_below.astype(np.float32))).data.min() == 0


def test_dicom_of_mr_is_told_to_be_converted(scans):
    with pytest.raises(UnreadableScan, match="convert the series to NIfTI"):
        read_mr(scans / "ge_tilted_dicom")


def test_impossible_settings_are_named(made):
    config = yaml.safe_load((Path(CONF) / "preprocessing" / "t1w.yaml").read_text())
    for words, change in {"t1w, t2w, flair, not 'dwi'": {"weighting": "dwi"}, "not 'box'": {"crop": "box"}}.items():
        with pytest.raises(UserError, match=words):
            build({**config, **change}, "preprocessing config")
    assert made("t1w").hash() != made("t2w").hash() != made("t2w", bias_field=False).hash()


def test_the_tissues_lie_on_the_working_grid():
    affine, shape = working_grid(3.0)
    grey, white = mr.tissue_maps(3.0)
    assert grey.shape == white.shape == shape
    voxel = partial(np.linalg.solve, affine)
    i, j, k = np.rint(voxel([26.0, -20.0, 30.0, 1.0])[:3]).astype(int)  # the corona radiata
    assert white[i, j, k] > 0.8 > 0.2 > grey[i, j, k]
