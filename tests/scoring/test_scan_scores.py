import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly3d.scoring.anomaly_maps import (
    Healthy,
    ScanMaps,
    anomaly_maps,
)
from anomaly3d.scoring.calibration import calibrate
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
from tests.scoring.toys import SHAPE, distances, usual


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
