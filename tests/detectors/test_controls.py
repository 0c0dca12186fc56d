"""Each control on small volumes whose score is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly3d.detectors.controls import CONTROLS, PCA, BrightVolume, MeanVolume, Mirror, Twin, ZScore
from anomaly3d.detectors.registry import load_detector
from anomaly3d.detectors.supervised import WEIGHT, Supervised
from anomaly3d.errors import UserError

SHAPE = (1, 8, 6, 10)


def volumes(count, seed=0):
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2


def test_bright_volume_is_the_share_above_55_hu():
    x = torch.zeros(1, *SHAPE)
    x[0, 0, :2, :3, :5] = 0.5
    assert float(BrightVolume().score(x)["total"]) == pytest.approx(30 / 480)


def test_mirror_sees_what_only_one_side_has():
    x = torch.zeros(1, *SHAPE)
    x[0, 0, 1, 2, 3] = 0.6
    assert float(Mirror().score(x)["total"]) == pytest.approx(2 * 0.6 / 480)
    symmetric = x + x.flip(2)
    assert float(Mirror().score(symmetric)["total"]) == 0


def test_mean_and_zscore_are_the_definitions():
    train, x = volumes(20), volumes(3, 1)
    mean = train.mean(0)
    got = MeanVolume.fit(train, x).score(x)["total"]
    np.testing.assert_allclose(got, (x - mean).square().flatten(1).mean(1), rtol=1e-5)
    z = ((x - mean) / train.std(0).clamp_min(0.02)).square().flatten(1).mean(1)
    np.testing.assert_allclose(ZScore.fit(train, x).score(x)["total"], z, rtol=1e-5)


def test_a_voxel_that_never_varies_cannot_rule_the_zscore():
    train = torch.zeros(5, *SHAPE)
    assert float(ZScore.fit(train, train).score(train[:1] + 0.02)["total"]) == pytest.approx(1.0, rel=1e-4)


def test_pca_finds_the_span_and_leaves_what_is_outside():
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(480, 5, generator=generator))[0].T
    mean = torch.randn(480, generator=generator)

    def draw(count):
        noise = 0.01 * torch.randn(count, 480, generator=generator)
        return (mean + torch.randn(count, 4, generator=generator) @ basis[:4] + noise).view(count, *SHAPE)

    detector = PCA.fit(draw(40), draw(10))
    assert len(detector.components) == 4
    inside = draw(6)
    np.testing.assert_allclose(detector.score(inside)["total"], 1e-4, rtol=0.3)
    outside = inside + 3 * basis[4].view(SHAPE)
    np.testing.assert_allclose(detector.score(outside)["total"], 9 / 480, rtol=0.05)


def test_the_number_of_components_is_chosen_on_validation():
    """Components of pure noise do not help volumes that were not trained on: fewer are chosen than there are."""
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))

    def draw(count, seed):
        generator = torch.Generator().manual_seed(seed)
        amount = torch.randn(count, 1, 1, 1, 1, generator=generator)
        return 3 * amount * direction + volumes(count, seed + 1)

    assert len(PCA.fit(draw(40, 10), draw(20, 20)).components) == 1


def test_the_twin_sees_a_small_lesion_and_not_the_noise():
    quiet = volumes(2) * 0.1
    again = volumes(2, 1) * 0.1
    lesion = quiet.clone()
    lesion[:, :, 2:5, 1:4, 3:6] += 0.5
    healthy = Twin().examine({"image": quiet, "twin": again})[0]["total"]
    ill = Twin().examine({"image": lesion, "twin": again})[0]["total"]
    assert (ill > 5 * healthy).all()


@pytest.mark.parametrize("name", [*CONTROLS, "supervised"])
def test_a_saved_detector_scores_the_same(tmp_path, name, monkeypatch):
    monkeypatch.setattr("anomaly3d.detectors.supervised.EPOCHS", 1)
    channels = 2 if name == "supervised" else 1
    train = torch.rand(16, channels, 32, 24, 16)
    detector = {**CONTROLS, "supervised": Supervised}[name].fit(train, train[:4, :1])
    detector.save(tmp_path / "model.pt")
    x = torch.rand(2, 1, 32, 24, 16)
    with torch.no_grad():
        again = load_detector(name, tmp_path / "model.pt").score(x)["total"]
        assert torch.equal(detector.score(x)["total"], again)
    assert detector.reconstruct(x).shape == x.shape


def test_the_supervised_control_learns_what_it_is_shown(monkeypatch):
    monkeypatch.setattr("anomaly3d.detectors.supervised.EPOCHS", 15)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(32, 1, 16, 16, 16, generator=generator) * 0.2
    lesion = torch.zeros_like(x)
    lesion[16:, :, 4:9, 4:9, 4:9] = 1
    x += 0.8 * lesion
    detector = Supervised.fit(torch.cat([x, lesion], 1), x)
    with torch.no_grad():
        scores = detector.score(x)["total"]
        places = detector.logits(x[16:])[1].mean(0)[0]
    assert scores[16:].min() > scores[:16].max()
    assert places[1:3, 1:3, 1:3].min() > places[0].max()  # it also knows where


def test_a_scan_without_a_mask_teaches_its_label_only():
    detector, x = Supervised(), torch.rand(2, 1, 16, 16, 16)
    none, ill = torch.zeros_like(x), torch.tensor([0.0, 1.0])
    scan, places = detector.logits(x)
    silent = F.softplus(places[0]).mean() * WEIGHT / 2  # of the healthy scan, where no place holds a lesion
    expected = F.binary_cross_entropy_with_logits(scan, ill) + silent
    assert torch.isclose(detector.loss(x, none, ill), expected)


def test_too_few_labelled_scans_are_refused():
    with pytest.raises(UserError, match="labelled_lesion"):
        Supervised.fit(torch.zeros(4, 2, 8, 8, 8), torch.zeros(0))
