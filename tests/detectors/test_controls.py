"""Each control on small volumes whose score is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anomaly3d.detectors.base import build_detector, load_detector
from anomaly3d.detectors.controls import PCA, BrightVolume, MeanVolume, Mirror, Twin, ZScore
from anomaly3d.detectors.supervised import WEIGHT, Supervised, augment
from tests.conftest import detector_config

SHAPE = (1, 8, 6, 10)
COUNTS = (1, 2, 4, 8, 16)


def score(detector, x):
    """A(x) of volumes."""
    return detector.examine({"image": x}).scores["total"]


def fitted(detector, train, validation):
    detector.fit(train, validation, torch.ones_like(train, dtype=torch.uint8))
    return detector


def volumes(count, seed=0):
    return torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(seed)) * 0.4 - 0.2


def test_bright_volume_is_the_share_above_55_hu():
    x = torch.zeros(1, *SHAPE)
    x[0, 0, :2, :3, :5] = 0.5
    assert float(score(BrightVolume(0.25), x)) == pytest.approx(30 / 480)


def test_mirror_sees_what_only_one_side_has():
    x = torch.zeros(1, *SHAPE)
    x[0, 0, 1, 2, 3] = 0.6
    assert float(score(Mirror(), x)) == pytest.approx(2 * 0.6 / 480)
    symmetric = x + x.flip(2)
    assert float(score(Mirror(), symmetric)) == 0


def test_mean_and_zscore_are_the_definitions():
    train, x = volumes(20), volumes(3, 1)
    mean = train.mean(0)
    got = score(fitted(MeanVolume(), train, x), x)
    np.testing.assert_allclose(got, (x - mean).square().flatten(1).mean(1), rtol=1e-5)
    z = ((x - mean) / train.std(0).clamp_min(0.02)).square().flatten(1).mean(1)
    np.testing.assert_allclose(score(fitted(ZScore(0.02), train, x), x), z, rtol=1e-5)


def test_a_voxel_that_never_varies_cannot_rule_the_zscore():
    train = torch.zeros(5, *SHAPE)
    assert float(score(fitted(ZScore(0.02), train, train), train[:1] + 0.02)) == pytest.approx(1.0, rel=1e-4)


def test_pca_finds_the_span_and_leaves_what_is_outside():
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(480, 5, generator=generator))[0].T
    mean = torch.randn(480, generator=generator)

    def draw(count):
        noise = 0.01 * torch.randn(count, 480, generator=generator)
        return (mean + torch.randn(count, 4, generator=generator) @ basis[:4] + noise).view(count, *SHAPE)

    detector = fitted(PCA(COUNTS), draw(40), draw(10))
    assert len(detector.components) == 4
    inside = draw(6)
    np.testing.assert_allclose(score(detector, inside), 1e-4, rtol=0.3)
    outside = inside + 3 * basis[4].view(SHAPE)
    np.testing.assert_allclose(score(detector, outside), 9 / 480, rtol=0.05)


def test_the_number_of_components_is_chosen_on_validation():
    """Components of pure noise do not help volumes that were not trained on: fewer are chosen than there are."""
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))

    def draw(count, seed):
        generator = torch.Generator().manual_seed(seed)
        amount = torch.randn(count, 1, 1, 1, 1, generator=generator)
        return 3 * amount * direction + volumes(count, seed + 1)

    assert len(fitted(PCA(COUNTS), draw(40, 10), draw(20, 20)).components) == 1


def test_the_twin_sees_a_small_lesion_and_not_the_noise():
    quiet = volumes(2) * 0.1
    again = volumes(2, 1) * 0.1
    lesion = quiet.clone()
    lesion[:, :, 2:5, 1:4, 3:6] += 0.5
    healthy, ill = (Twin(30).examine({"image": x, "twin": again}).scores["total"] for x in (quiet, lesion))
    assert (ill > 5 * healthy).all()


@pytest.mark.parametrize("name", ["bright_volume", "mean_volume", "zscore", "mirror", "pca", "supervised"])
def test_a_saved_detector_scores_the_same(tmp_path, name):
    train = torch.rand(16, 1, 32, 24, 16)
    detector = build_detector(detector_config(name)["module"]).eval()
    if detector.fits_at_once:
        detector.fit(train, train[:4], torch.ones_like(train, dtype=torch.uint8))
    detector.save(tmp_path / "model.pt")
    x = torch.rand(2, 1, 32, 24, 16)
    again = load_detector(tmp_path / "model.pt").eval()
    assert again.config == detector.config
    with torch.no_grad():
        assert torch.equal(score(detector, x), score(again, x))


def test_the_supervised_control_learns_what_it_is_shown():
    torch.manual_seed(0)
    x = torch.rand(32, 1, 16, 16, 16) * 0.2
    lesion = torch.zeros_like(x)
    lesion[16:, :, 4:9, 4:9, 4:9] = 1
    x += 0.8 * lesion
    detector = Supervised(16)
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    for _ in range(15):
        for rows in torch.randperm(32).split(8):
            batch = {"image": x[rows], "lesion_mask": lesion[rows], "label": (rows >= 16).float()}
            optimizer.zero_grad()
            detector.loss(batch)["loss"].backward()
            optimizer.step()
    detector.eval()
    with torch.no_grad():
        scores = score(detector, x)
        places = detector.logits(x[16:])[1].mean(0)[0]
    assert scores[16:].min() > scores[:16].max()
    assert places[1:3, 1:3, 1:3].min() > places[0].max()  # it also knows where


def test_volume_and_mask_are_moved_together():
    x = torch.rand(6, 1, 8, 6, 10)
    moved, mask = augment(x, x)
    assert torch.equal(moved, mask)
    assert not torch.equal(moved, x)
    assert torch.equal(moved.flatten(1).sort(1).values, x.flatten(1).sort(1).values)


def test_a_scan_without_a_mask_teaches_its_label_only():
    detector, x = Supervised(16), torch.rand(2, 1, 16, 16, 16)
    none, ill = torch.zeros_like(x), torch.tensor([0.0, 1.0])
    scan, places = detector.logits(x)
    silent = F.softplus(places[0]).mean() * WEIGHT / 2  # of the healthy scan, where no place holds a lesion
    expected = F.binary_cross_entropy_with_logits(scan, ill) + silent
    assert torch.isclose(detector.cross_entropy(x, none, ill), expected)


def test_small_volumes_are_learned_from_in_float32(monkeypatch):
    """Whatever precision the trainer asks for; moved by chance, so chance is held."""
    detector, x = Supervised(16), torch.rand(2, 1, 16, 16, 16)
    batch = {"image": x, "lesion_mask": x > 0.9, "label": torch.tensor([0.0, 1.0])}
    monkeypatch.setattr("anomaly3d.detectors.supervised.augment", lambda x, mask: (x, mask))
    exact = detector.cross_entropy(x, batch["lesion_mask"].float(), batch["label"])
    assert torch.equal(detector.loss(batch)["loss"], exact)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(detector.loss(batch)["loss"], exact)
        assert not torch.equal(detector.cross_entropy(x, batch["lesion_mask"].float(), batch["label"]), exact)


def test_scoring_sees_no_lesion_mask():
    assert not Supervised(16).reads
