import torch

from anomaly3d.detectors.noise import noise_of


def test_a_scan_decides_its_noise_and_no_other_does():
    x = torch.rand(3, 1, 4, 5, 6)
    noise = noise_of(x, 2, 7)
    torch.rand(5)
    assert torch.equal(noise_of(x.flip(0), 2, 7).flip(0), noise)
    assert torch.equal(noise_of(x[1:2], 2, 7), noise[1:2])
    assert (noise[0] - noise[1]).abs().min() > 0
    moments = noise_of(x[:1], 100_000)
    assert abs(float(moments.mean())) < 0.02
    assert abs(float(moments.std()) - 1) < 0.02
