"""What is usual in maps of healthy scans, and maps in units of it."""

import pickle
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly3d.errors import UserError
from anomaly3d.scoring.anomaly_maps import (
    AGED,
    BESIDE,
    FLOOR,
    POOLED,
    RECONSTRUCTION,
    Ageing,
    Healthy,
    RawMaps,
    ScanMaps,
    anomaly_maps,
    maps_of,
    smooth,
)
from anomaly3d.scoring.calibration import calibrate_anew
from tests.malice import Payload
from tests.scoring.toys import SHAPE, distances, usual


def test_healthy_is_mean_and_spread_of_healthy_residuals_inside_the_brain(maps, tmp_path):
    raws, brains = zip(*((m.read().values["residual"], m.read().brain) for m in maps), strict=True)
    stack, inside = np.stack(raws), np.stack(brains)
    healthy = Healthy.measure(maps, distances(), ("image", "feature"))
    pooled = lambda v: ndimage.gaussian_filter(v.astype(float), POOLED)  # noqa: E731
    weight = np.maximum(pooled(inside.sum(0)), 3e-3)
    mean = pooled((stack * inside).sum(0)) / weight
    spread = np.sqrt(pooled(((stack - mean) ** 2 * inside).sum(0)) / weight)
    found = healthy.statistics["residual"]
    np.testing.assert_allclose(found[0], mean, atol=1e-6)
    np.testing.assert_allclose(found[1], np.maximum(spread, FLOOR), rtol=1e-4)
    assert found[1][5, 5, 4] > 1.2 * found[1][0, 0, 0]
    assert (healthy.usual == inside[0]).all()
    assert healthy.count == 3
    assert healthy.medians == {"image": 2.0, "feature": 1.0}
    healthy.save(tmp_path / "healthy.npz")
    back = Healthy.load(tmp_path / "healthy.npz")
    for one, other in zip(back.statistics["residual"], found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert (back.usual == healthy.usual).all()
    assert back.medians == healthy.medians


def test_statistics_of_an_earlier_version_are_refused(tmp_path):
    np.savez(tmp_path / "healthy.npz", **{"mean/residual": np.zeros(3)})
    with pytest.raises(UserError, match="earlier version"):
        Healthy.load(tmp_path / "healthy.npz")


ALL = Healthy(0, np.zeros(()), {}, {}, {})  # knows of nothing that is not judged


@pytest.fixture
def aged(tmp_path):
    """Makes healthy scans from 20 to 80 years whose residual is by exp(0.02 (age - 50)) larger."""

    def make(ages):
        rng, found = np.random.default_rng(0), []
        for i, age in enumerate(ages):
            image = rng.normal(0, 0.1 * np.exp(0.02 * ((age or 50) - 50)), SHAPE)
            volumes = {"image": image, "reconstruction": np.zeros(SHAPE), "brain": np.ones(SHAPE)}
            for kind, data in volumes.items():
                nib.save(nib.Nifti1Image(data.astype(np.float32), np.eye(4)), tmp_path / f"{kind}-{i}.nii.gz")
            files = [str(tmp_path / f"{kind}-{i}.nii.gz") for kind in volumes]
            found.append(ScanMaps(str(i), *files, age=age))
        return found

    return make


def test_the_healthy_spread_follows_age(aged, tmp_path):
    scans = aged(np.linspace(20, 80, 30).tolist())
    ageing = Ageing.measure(scans, [scan.scan_id for scan in scans], ALL)
    assert ageing["residual"].mean == pytest.approx(50)
    assert ageing["residual"].growth(60) == pytest.approx(np.exp(0.2), rel=0.03)
    assert ageing["residual"].growth(130) == ageing["residual"].growth(120)  # beyond two standard deviations
    healthy = replace(usual(0.1), ageing=ageing)
    healthy.save(tmp_path / "healthy.npz")
    assert Healthy.load(tmp_path / "healthy.npz").growth("residual", 60) == healthy.growth("residual", 60)
    raw = {"residual": np.random.default_rng(1).normal(0, 0.1, SHAPE)}, np.ones(SHAPE, bool)
    unknown, old = (anomaly_maps(RawMaps(*raw, age), healthy) for age in (None, 60.0))
    np.testing.assert_allclose(old["standardised"] * np.exp(0.2), unknown["standardised"], rtol=0.05, atol=1e-6)
    np.testing.assert_allclose(old["residual"], unknown["residual"])
    assert Healthy.load(tmp_path / "healthy.npz").plus(RawMaps(*raw, 90.0), 1).ageing == healthy.ageing


def test_what_is_not_judged_says_nothing_of_age(aged):
    """Calcium grows with age, and the spread of the tissue does not."""
    scans = aged([50.0] * 30)
    scans = [replace(scan, age=20.0 + 2 * i) for i, scan in enumerate(scans)]
    for i, scan in enumerate(scans):
        image = nib.load(scan.image)
        data = np.asarray(image.dataobj).clip(-0.4, 0.4)
        data[: 1 + i // 12, :2] = 0.95
        nib.save(nib.Nifti1Image(data, image.affine), scan.image)
    subjects = [scan.scan_id for scan in scans]
    judged, all_of_it = (Ageing.measure(scans, subjects, replace(ALL, densest=d))["residual"] for d in (0.9, None))
    assert all_of_it.growth(80) > 1.1
    assert judged.growth(80) == pytest.approx(1, abs=0.05)


def test_scans_of_one_person_count_once_for_age(aged):
    ages = np.linspace(20, 80, AGED).tolist()
    once = aged(ages)
    twice = [*once, *once[:1] * 7]
    subjects = [scan.scan_id for scan in twice]
    found, expected = (Ageing.measure(s, subjects[: len(s)], ALL)["residual"] for s in (twice, once))
    assert [found.slope, found.mean, found.spread] == pytest.approx([expected.slope, expected.mean, expected.spread])


@pytest.mark.parametrize("ages", [[*range(20, 20 + AGED - 1), None, None], [60.0] * AGED])
def test_few_people_of_known_age_or_all_of_one_say_nothing_of_age(aged, ages):
    scans = aged(ages)
    with pytest.raises(UserError, match=f"by_age=true takes {AGED} healthy people of different known ages"):
        Ageing.measure(scans, [scan.scan_id for scan in scans], ALL)


def test_scans_of_unknown_age_set_no_threshold_where_the_spread_follows_age(maps, aged):
    scans = aged(np.linspace(20, 80, AGED).tolist())
    healthy = replace(usual(0.1), ageing=Ageing.measure(scans, [scan.scan_id for scan in scans], ALL))
    table = distances().assign(subject_id=list("abc"))
    with pytest.raises(UserError, match=r"3 of 3 calibration scans have none \(the first is a\)"):
        calibrate_anew("here", ["peak"], table, maps, healthy, 0.5, 0.06, 1)
    known = [replace(scan, age=50.0) for scan in maps]
    found, _ = calibrate_anew("here", ["peak"], table, known, healthy, 0.5, 0.06, 1)
    assert found.ageing == healthy.ageing  # sites do not differ by age alone


def test_the_standardised_map_ignores_an_offset_and_unusual_places(maps):
    raw = maps[1].read()
    brain, healthy = raw.brain, usual(0.1)
    plain = anomaly_maps(raw, healthy)["standardised"]
    offset = anomaly_maps(RawMaps({"residual": raw.values["residual"] + 0.2}, brain), healthy)["standardised"]
    np.testing.assert_allclose(offset, plain, atol=1e-4)
    healthy.brains[4:8] = 4  # of 10
    elsewhere = anomaly_maps(raw, Healthy(10, healthy.brains, healthy.total, healthy.square, {}))["standardised"]
    assert (elsewhere[4:8] == 0).all()
    assert (elsewhere[8:][brain[8:]] != 0).all()


def test_what_is_too_dense_for_blood_and_lies_beside_it_is_not_judged(maps, tmp_path):
    """The second scan has a calcified spot beside its lesion; the first, which is usual itself, has one elsewhere."""
    image = nib.load(maps[0].image).get_fdata(dtype=np.float32)
    image[2, 2, 2] = 1.5
    nib.save(nib.Nifti1Image(image, np.eye(4)), maps[0].image)
    healthy = replace(usual(0.05), densest=1.2)
    raw = maps[1].read()
    raw.image[9, 8, 2] = 1.5
    raw.values["residual"][9, 8, 2] = 1.5
    beside = np.abs(np.indices(SHAPE) - np.array([9, 8, 2]).reshape(3, 1, 1, 1)).sum(0) <= BESIDE
    assert (healthy.judged(raw) == (raw.brain & ~beside)).all()
    z = anomaly_maps(raw, healthy)["standardised"]
    assert (z[beside] == 0).all()
    assert (z[4:8, 4:8, 3:7] > 5).all()  # the lesion, 0.8 above tissue
    assert anomaly_maps(raw, usual(0.05))["standardised"][9, 8, 2] > 2.5
    raw.values["residual"][9, 8, 2] = 99
    np.testing.assert_array_equal(anomaly_maps(raw, healthy)["standardised"], z)  # nor does it reach its neighbours
    measured = Healthy.measure(maps[:2], distances(), (), densest=1.2)
    assert (measured.brains[2, 2, 2], measured.brains[6, 6, 5]) == (1, 2)
    assert measured.square["residual"][2, 2, 2] < 0.1
    measured.save(tmp_path / "healthy.npz")
    assert Healthy.load(tmp_path / "healthy.npz").plus(maps[0].read(), -1).densest == 1.2


def test_smoothing_does_not_draw_zeros_into_the_brain():
    brain = np.zeros(SHAPE, bool)
    brain[3:9, 3:8, 2:7] = True
    smoothed = smooth(np.where(brain, 0.4, 7.0), brain)
    np.testing.assert_allclose(smoothed[brain], 0.4, rtol=1e-5)
    assert (smoothed[~brain] == 0).all()


def test_maps_are_signed(maps):
    for signed in anomaly_maps(maps[2].read(), usual(0.1)).values():
        assert signed[5, 5, 4] < 0


def test_a_file_of_healthy_statistics_that_holds_code_is_refused(tmp_path):
    path, payload = tmp_path / "own.npz", Payload(tmp_path / "ran")
    np.savez(path, count=np.array(3), brains=np.array([payload], object))
    with pytest.raises(UserError, match=r"own\.npz is damaged: run"):
        Healthy.load(path)
    path.write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match="damaged"):
        Healthy.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))  # an array where an archive of them belongs
    with pytest.raises(UserError, match="damaged"):
        Healthy.load(path)
    assert not (tmp_path / "ran").exists()


def test_files_of_a_scan_know_its_age_where_the_manifest_does(tmp_path):
    (tmp_path / RECONSTRUCTION).mkdir()
    rows = pd.DataFrame({"scan_id": ["a", "b"], "image": "i", "brain_mask": "m", "age": ["61.5", ""]})
    assert [scan.age for scan in maps_of(rows, tmp_path)] == [61.5, None]
    assert [scan.age for scan in maps_of(rows.drop(columns="age"), tmp_path)] == [None, None]
