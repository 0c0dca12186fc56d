import pytest
import torch
import torch.nn.functional as F

from anomaly3d.detectors.denoising import DenoisingAutoencoder, coarse_noise
from tests.detectors.toys import Answers, batch

SHAPE = (9, 13, 5)
SPREAD = 0.4


def test_noise_has_the_variance_of_interpolated_points():
    """Each voxel is a weighted sum of points; over all shifts its mean variance is that of the weights."""
    torch.manual_seed(0)
    noise = coarse_noise(torch.zeros(4000, 1, *SHAPE), 3, SPREAD)
    points = torch.eye(27).view(27, 1, 3, 3, 3)
    weights = F.interpolate(points, size=SHAPE, mode="trilinear", align_corners=True)
    expected = SPREAD**2 * weights.square().sum(0).mean()
    assert float(noise.square().mean()) == pytest.approx(float(expected), rel=0.05)
    assert abs(float(noise.mean())) < 4 * SPREAD / 4000**0.5
    assert float(noise.square().mean(0).max()) == pytest.approx(SPREAD**2, rel=0.1)  # at the points themselves


def test_noise_is_coarse():
    """A quarter of the way from point to point and half of it: weights (3/4, 1/4) and (1/2, 1/2)."""
    torch.manual_seed(0)
    noise = coarse_noise(torch.zeros(4000, 1, *SHAPE), 3, SPREAD)[:, 0]
    steps = (noise - noise.roll(1, 1)).square().mean((0, 2, 3))
    inside = steps.sort().values[:-1]  # the largest is where the volume's two ends meet
    assert inside.max() < 0.2 * 2 * noise.var()  # neighbours of white noise: 2 variances


def test_the_network_sees_noise_in_the_brain_only():
    detector, scans = DenoisingAutoencoder(8, 16, 4, SPREAD), batch()
    detector.net = Answers(lambda x: x)
    outside = scans["brain"] == 0
    torch.manual_seed(0)
    loss = detector.loss(scans)["loss"]
    (noisy,) = detector.net.seen
    assert torch.equal(noisy[outside], scans["image"][outside])
    added = noisy - scans["image"]
    assert (added[~outside] != 0).all()
    assert not torch.equal(added[0], added[1])
    per_scan = added.square().flatten(1).sum(1) / (~outside).flatten(1).sum(1)
    torch.testing.assert_close(loss, per_scan.mean())  # the identity leaves all of it
    assert detector.examine(scans).scores["total"].tolist() == pytest.approx([0] * 3, abs=1e-6)  # no noise is added


def test_it_takes_out_what_does_not_belong():
    """Trained on heads of one tissue, it finds a planted lump where it is."""
    torch.manual_seed(0)
    healthy = batch(8)
    healthy["image"] = torch.where(healthy["brain"] > 0, 0.2 + 0.02 * torch.randn_like(healthy["image"]), -1.0)
    detector = DenoisingAutoencoder(8, 16, 4, SPREAD)
    optimizer = torch.optim.Adam(detector.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        detector.loss(healthy)["loss"].backward()
        optimizer.step()
    detector.eval()
    ill = {**healthy, "image": healthy["image"].clone()}
    lump = torch.zeros_like(healthy["brain"], dtype=torch.bool)
    lump[:, :, 6:10, 10:14, 3:5] = True
    ill["image"][lump] += 0.5
    with torch.no_grad():
        found, before = (detector.examine(scans) for scans in (ill, healthy))
    assert (found.scores["total"] > before.scores["total"]).all()
    residual = ill["image"] - found.reconstruction
    assert residual[lump].mean() > 0.25
    assert residual[~lump & (ill["brain"] > 0)].abs().mean() < 0.1
