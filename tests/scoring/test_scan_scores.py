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
    Ageing,
    Healthy,
    RawMaps,
    ScanMaps,
    anomaly_maps,
    smooth,
)
from anomaly3d.scoring.calibration import calibrate, calibrate_anew
from anomaly3d.scoring.scan_scores import (
    PEAK,
    RARE,
    choose,
    choose_without_each,
    enhanced,
    of_one_subject,
    peak,
    rescore,
)

SHAPE = (12, 10, 9)


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


def usual(spread, medians=None, name="residual"):
    """Healthy residuals of mean 0, everywhere in the brain."""
    full = np.ones(SHAPE)
    return Healthy(10, 10 * full, {name: 0 * full}, {name: 10 * spread**2 * full}, medians or {})


def distances(scans="abc"):
    return pd.DataFrame({"scan_id": list(scans), "total": 3.0, "image": [1.0, 2.0, 3.0], "feature": [2.0, 1.0, 0.0]})


def test_scores_see_what_they_are_for(maps):
    healthy = usual(0.05, {"image": 2.0, "feature": 1.0})
    table = rescore(distances(), maps, healthy, 1, "test").set_index("scan_id")
    raw = maps[0].read()
    residual, brain = raw.values["residual"], raw.brain
    assert table["masked"]["a"] == pytest.approx(np.mean(residual[brain] ** 2))
    assert table["balanced"].tolist() == pytest.approx([1 / 2 + 2, 1 + 1, 3 / 2])
    assert table["kappa_10"].tolist() == pytest.approx([21, 12, 3])
    assert table["total"].tolist() == [3, 3, 3]
    for name in ("peak", "smoothed", "exceedance", "clustered"):
        assert table[name]["b"] > 3 * table[name]["a"]
        assert table[name]["c"] > 3 * table[name]["a"]
    assert table["peak_brighter"]["b"] > 3 * table["peak_brighter"]["c"]
    assert table["peak_darker"]["c"] > 3 * table["peak_darker"]["b"]
    z = anomaly_maps(raw, healthy)["standardised"][brain]
    assert np.median(z) == pytest.approx(0, abs=0.2)
    assert table["standardised"]["a"] == pytest.approx(np.mean(z**2))
    assert table["exceedance"]["a"] == pytest.approx(np.mean((np.abs(z) - RARE).clip(min=0)))


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


def test_a_scan_is_judged_by_what_is_usual_in_others(maps):
    """Left out exactly: the same as if the statistics had been measured without it."""
    every = Healthy.measure(maps, distances(), ("image", "feature"))
    others = Healthy.measure(maps[1:], distances(), ("image", "feature"))
    left = rescore(distances()[:1], maps[:1], every, 1, "test", {"a": maps[:1]})
    apart = rescore(distances()[:1], maps[:1], others, 1, "test")
    among = rescore(distances()[:1], maps[:1], every, 1, "test")
    for score in ("peak", "standardised", "exceedance"):
        assert left[score][0] == pytest.approx(apart[score][0], rel=1e-6)
    assert left["peak"][0] != pytest.approx(among["peak"][0], rel=1e-3)


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


def test_scans_of_one_subject_are_left_out_together(maps):
    table = distances().assign(subject_id=["p", "q", "p"])
    same = of_one_subject(table, maps)
    assert {name: [scan.scan_id for scan in scans] for name, scans in same.items()} == {
        **{key: ["a", "c"] for key in "ac"},
        "b": ["b"],
    }
    every, others = (Healthy.measure(scans, distances(), ()) for scans in (maps, maps[1:2]))
    left = rescore(distances(), maps, every, 1, "test", same).set_index("scan_id")
    apart = rescore(distances(), maps, others, 1, "test").set_index("scan_id")
    for scan_id in "ac":
        assert left["peak"][scan_id] == pytest.approx(apart["peak"][scan_id], rel=1e-6)


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


def test_a_voxel_threshold_is_a_volume_of_the_median_healthy_scan(maps):
    """Voxels of 1 mm^3: 0.06 ml are 60 of them."""
    healthy = usual(0.05, {"image": 2.0, "feature": 1.0})
    table = rescore(distances(), maps, healthy, 1, "test").assign(subject_id=list("abc"))
    (made,) = calibrate("own", ["peak"], table, maps, healthy, 0.5, 0.06, 1)
    level, beyond = made.voxel_thresholds["standardised"], []
    for scan in maps:
        raw = scan.read()
        z = anomaly_maps(raw, healthy)["standardised"]
        beyond.append(int((np.abs(z[raw.brain]) > level).sum()))
    assert sorted(beyond)[1] == pytest.approx(60, abs=1)
    assert made.voxel_ml == 0.06


def test_a_scan_that_is_usual_itself_sets_its_voxel_threshold_by_the_others(maps):
    table = distances().assign(subject_id=list("abc"), peak=1.0)
    every, others = (Healthy.measure(scans, distances(), ()) for scans in (maps, maps[1:]))

    def level(healthy, measured_on):
        (made,) = calibrate("own", ["peak"], table[:1], maps[:1], healthy, 0.5, 0.06, 1, measured_on)
        return made.voxel_thresholds["standardised"]

    assert level(every, {"a": maps[:1]}) == pytest.approx(level(others, {}), rel=1e-5)
    assert level(every, {}) != pytest.approx(level(others, {}), rel=1e-3)


def test_maps_are_signed(maps):
    for signed in anomaly_maps(maps[2].read(), usual(0.1)).values():
        assert signed[5, 5, 4] < 0


def test_cluster_enhancement_is_the_published_sum():
    """A cube of 8 at 2.2 inside a plate of 24 at 1.6 and, apart from it, one voxel at -3.1."""
    z = np.zeros(SHAPE)
    z[2:8, 2:4, 2:4] = 1.6
    z[2:4, 2:4, 2:4] = 2.2
    z[10, 8, 7] = -3.1
    unit = PEAK * z.size
    low, high, alone = (n / unit for n in (24, 8, 1))
    found = enhanced(z)
    assert found[6, 3, 3] == pytest.approx(low**0.5 * 1.5**2 * 0.5)
    assert found[2, 2, 2] == pytest.approx((low**0.5 * 1.5**2 + high**0.5 * 2**2) * 0.5)
    assert found[10, 8, 7] == pytest.approx(alone**0.5 * sum(h**2 for h in (1.5, 2, 2.5, 3)) * 0.5)
    assert np.count_nonzero(found) == 25


@pytest.mark.parametrize("seed", [0, 1])
def test_clusters_are_those_that_labels_of_the_volume_give(seed):
    """Ragged ones that touch the sides, split and vanish as the height grows."""
    z = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((17, 12, 9)), 1.0)
    z *= 2.5 / z.std()
    expected = np.zeros(z.shape)
    for signed in (z, -z):
        for height in np.arange(1.5, 20, 0.5):
            parts, count = ndimage.label(signed > height)
            for part in range(1, count + 1):
                where = parts == part
                expected[where] += (where.sum() / (PEAK * z.size)) ** 0.5 * height**2 * 0.5
    np.testing.assert_allclose(enhanced(z), expected, rtol=1e-12)
    assert not enhanced(np.zeros((5, 4, 3))).any()


def test_the_peak_is_the_mean_of_the_largest():
    values = np.arange(1000.0)
    shape = (64, 64, 64)
    assert peak(values, shape) == pytest.approx(np.sort(values)[-100:].mean())
    assert round(PEAK * 128**3) == 800  # the same volume of brain on a finer grid
    assert peak(values[:3], shape) == 1
    assert peak(values, (4, 4, 4)) == 999


def pasted(count, gain=1.5, seed=0):
    """Validation scans, and the same with something pasted in that ``peak`` sees better than A(x) does."""
    rng = np.random.default_rng(seed)
    ids = {"scan_id": [str(i) for i in range(count)], "subject_id": [str(i) for i in range(count)]}
    base = rng.normal(size=count)
    healthy = pd.DataFrame({**ids, "image": base, "total": base, "peak": base})
    ill = pd.DataFrame({**ids, "image": base, "total": base + 0.3, "peak": base + gain + rng.normal(0, 0.1, count)})
    return healthy, ill


def test_a_score_that_finds_pasted_anomalies_better_is_chosen():
    chosen, ranking = choose(*pasted(60))
    assert chosen == "peak"
    assert list(ranking) == ["peak", "total", "image"]
    assert ranking["image"] == pytest.approx(0.5)


def test_a_score_of_one_sign_is_ranked_and_never_chosen():
    healthy, ill = (table.assign(peak_darker=table["peak"] + (i == 1)) for i, table in enumerate(pasted(60)))
    chosen, ranking = choose(healthy, ill)
    assert next(iter(ranking)) == "peak_darker"
    assert chosen == "peak"


def test_few_scans_do_not_replace_the_papers_score():
    for count, gain in ((12, 0.45), (6, 5.0)):
        chosen, ranking = choose(*pasted(count, gain))
        assert chosen == "total"
        assert next(iter(ranking)) == "peak"


def test_the_best_of_many_equal_scores_seldom_takes_the_papers_place():
    """5 % are shared by all that could have been chosen: of 400 draws of 8 equal ones 20 may be, alone 80."""
    taken = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        tables = []
        for shift in (0, 1):
            ids = {"scan_id": [str(i) for i in range(20)], "subject_id": [str(i) for i in range(20)]}
            scores = {name: rng.normal(shift, 1, 20) for name in ("total", *"abcdefgh")}
            tables.append(pd.DataFrame({**ids, **scores}))
        taken += choose(*tables)[0] != "total"
    assert taken <= 40


def test_the_papers_score_stays_where_it_is_the_best():
    healthy, ill = pasted(60)
    assert choose(healthy, ill.assign(total=ill["peak"] + 1))[0] == "total"


def test_a_detectors_own_map_is_scored_under_its_name(maps, tmp_path):
    """A map that equals the residual gets the residual's scores, and needs no reconstruction."""
    own = []
    for scan in maps:
        path = str(tmp_path / f"logit-{scan.scan_id}.nii.gz")
        nib.save(nib.Nifti1Image(scan.read().values["residual"], np.eye(4)), path)
        own.append(ScanMaps(scan.scan_id, scan.image, "", scan.brain_mask, {"logit": path}))
    healthy = Healthy.measure(own, distances(), ())
    sums = ({"residual": v["logit"]} for v in (healthy.total, healthy.square))
    residual = Healthy(healthy.count, healthy.brains, *sums, {})
    named = rescore(distances(), own, healthy, 1, "test")
    plain = rescore(distances(), maps, residual, 1, "test")
    for score in ("peak", "standardised", "peak_darker"):
        np.testing.assert_allclose(named[f"logit_{score}"], plain[score], rtol=1e-5)
    assert "peak" not in named


def test_each_kind_is_judged_by_what_the_others_choose():
    """``image`` sees shells alone: chosen on the other kinds, ``peak`` fails on them, and the table says so."""
    healthy, ill = pasted(40)
    lumps = ill.assign(lesions="lump")
    shells = ill.assign(lesions="shell", image=ill["image"] + 3, peak=healthy["peak"], total=healthy["total"])
    found = choose_without_each(healthy, pd.concat([lumps, shells]))
    assert found["shell"]["chosen_by_others"] == "peak"
    assert found["shell"]["auc"] == pytest.approx(0.5)
    assert found["lump"]["chosen_by_others"] == "image"
    assert found["lump"]["auc_total"] == pytest.approx(choose(healthy, lumps)[1]["total"])
