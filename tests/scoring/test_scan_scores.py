import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from anomaly3d.scoring.anomaly_maps import FLOOR, SPREAD_SMOOTHING, Healthy, ScanMaps, anomaly_maps, smooth
from anomaly3d.scoring.scan_scores import LARGEST, choose, rescore, top

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


def usual(spread, medians=None):
    """Healthy residuals of mean 0."""
    mean, spreads = np.zeros(SHAPE, np.float32), np.full(SHAPE, spread, np.float32)
    return Healthy({"residual": mean}, {"residual": spreads}, medians or {})


def distances(scans="abc"):
    return pd.DataFrame({"scan_id": list(scans), "total": 3.0, "image": [1.0, 2.0, 3.0], "feature": [2.0, 1.0, 0.0]})


def test_scores_see_what_they_are_for(maps):
    healthy = usual(0.05, {"image": 2.0, "feature": 1.0})
    table = rescore(distances(), maps, healthy, 1, "test").set_index("scan_id")
    raw, brain = maps[0].read()
    residual = raw["residual"]
    assert table["masked"]["a"] == pytest.approx(np.mean(residual[brain] ** 2))
    assert table["balanced"].tolist() == pytest.approx([1 / 2 + 2, 1 + 1, 3 / 2])
    assert table["kappa_10"].tolist() == pytest.approx([21, 12, 3])
    assert table["total"].tolist() == [3, 3, 3]
    for name in ("top", "smoothed_top", "standardised_top", "smoothed"):
        assert table[name]["b"] > 3 * table[name]["a"]
        assert table[name]["c"] > 3 * table[name]["a"]
    assert table["brighter_top"]["b"] > 3 * table["brighter_top"]["c"]
    assert table["darker_top"]["c"] > 3 * table["darker_top"]["b"]
    assert table["standardised"]["b"] == pytest.approx(table["smoothed"]["b"] / 0.05**2, rel=1e-4)


def test_healthy_is_mean_and_spread_of_healthy_residuals(maps, tmp_path):
    stack = np.stack([m.read()[0]["residual"] for m in maps])
    healthy = Healthy.measure(maps, distances(), ("image", "feature"))
    inside = (slice(5, 7), slice(5, 7), slice(4, 6))
    share = ndimage.gaussian_filter(stack.var(0), SPREAD_SMOOTHING)
    np.testing.assert_allclose(healthy.spread["residual"], np.maximum(np.sqrt(share), FLOOR), rtol=1e-4)
    assert healthy.spread["residual"][inside].mean() > 1.5 * healthy.spread["residual"][0].mean()
    assert healthy.medians == {"image": 2.0, "feature": 1.0}
    healthy.save(tmp_path / "healthy.npz")
    back = Healthy.load(tmp_path / "healthy.npz")
    np.testing.assert_array_equal(back.spread["residual"], healthy.spread["residual"])
    np.testing.assert_array_equal(back.mean["residual"], healthy.mean["residual"])
    assert back.medians == healthy.medians


def test_smoothing_does_not_draw_zeros_into_the_brain():
    brain = np.zeros(SHAPE, bool)
    brain[3:9, 3:8, 2:7] = True
    smoothed = smooth(np.where(brain, 0.4, 7.0), brain)
    np.testing.assert_allclose(smoothed[brain], 0.4, rtol=1e-5)
    assert (smoothed[~brain] == 0).all()


def test_maps_are_signed(maps):
    raw, brain = maps[2].read()
    for signed in anomaly_maps(raw, brain, usual(0.1)).values():
        assert signed[5, 5, 4] < 0


def test_top_is_the_mean_of_the_largest():
    values = np.arange(1000.0)
    assert top(values) == pytest.approx(np.sort(values)[-round(1000 * LARGEST) :].mean())
    assert top(values[:3]) == 2


def pasted(count, gain=1.5, seed=0):
    """Validation scans, and the same with something pasted in that ``top`` sees better than A(x) does."""
    rng = np.random.default_rng(seed)
    ids = {"scan_id": [str(i) for i in range(count)], "subject_id": [str(i) for i in range(count)]}
    base = rng.normal(size=count)
    healthy = pd.DataFrame({**ids, "image": base, "total": base, "top": base})
    ill = pd.DataFrame({**ids, "image": base, "total": base + 0.3, "top": base + gain + rng.normal(0, 0.1, count)})
    return healthy, ill


def test_a_score_that_finds_pasted_anomalies_better_is_chosen():
    chosen, ranking = choose(*pasted(60))
    assert chosen == "top"
    assert list(ranking) == ["top", "total", "image"]
    assert ranking["image"] == pytest.approx(0.5)


def test_few_scans_do_not_replace_the_papers_score():
    chosen, ranking = choose(*pasted(10, gain=0.45))
    assert chosen == "total"
    assert next(iter(ranking)) == "top"


def test_the_papers_score_stays_where_it_is_the_best():
    healthy, ill = pasted(60)
    assert choose(healthy, ill.assign(total=ill["top"] + 1))[0] == "total"


def test_a_detectors_own_map_is_scored_under_its_name(maps, tmp_path):
    """A map that equals the residual gets the residual's scores, and needs no reconstruction."""
    own = []
    for scan in maps:
        path = str(tmp_path / f"logit-{scan.scan_id}.nii.gz")
        nib.save(nib.Nifti1Image(scan.read()[0]["residual"], np.eye(4)), path)
        own.append(ScanMaps(scan.scan_id, scan.image, "", scan.brain_mask, {"logit": path}))
    healthy = Healthy.measure(own, distances(), ())
    residual = Healthy(*({"residual": v["logit"]} for v in (healthy.mean, healthy.spread)), {})
    named = rescore(distances(), own, healthy, 1, "test")
    plain = rescore(distances(), maps, residual, 1, "test")
    for score in ("top", "standardised", "darker_top"):
        np.testing.assert_allclose(named[f"logit_{score}"], plain[score], rtol=1e-5)
    assert "top" not in named
