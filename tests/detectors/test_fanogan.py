import torch

from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig, smoothed
from anomaly3d.phases.encoder import EncoderPhase


def tiny(smooth):
    torch.manual_seed(0)
    return FAnoGAN(ModelConfig(4, 8, 16, "group", "none", "group", "tanh", 3), smooth=smooth)


def test_the_filter_takes_out_what_alternates_and_keeps_what_is_even():
    i, j, k = torch.meshgrid(*map(torch.arange, (8, 7, 6)), indexing="ij")
    for lines in (i, j, k, i + j + k):
        x = 0.2 + 0.5 * (-1.0) ** lines[None, None]
        torch.testing.assert_close(smoothed(x)[..., 1:-1, 1:-1, 1:-1], torch.full((1, 1, 6, 5, 4), 0.2))
    slope = (i + 2 * j - k)[None, None] / 40
    torch.testing.assert_close(smoothed(slope)[..., 1:-1, 1:-1, 1:-1], slope[..., 1:-1, 1:-1, 1:-1])
    torch.testing.assert_close(smoothed(torch.full((2, 1, 5, 4, 3), -1.0)), torch.full((2, 1, 5, 4, 3), -1.0))


def test_a_smooth_detector_compares_with_the_filtered_volume_everywhere():
    x = torch.rand(3, 1, 16, 16, 16) * 2 - 1
    plain, smooth = tiny(False).eval(), tiny(True).eval()
    expected = smoothed(plain.reconstruct(x))
    assert (expected - plain.reconstruct(x)).abs().max() > 0.01
    found = smooth.examine({"image": x})
    for reconstruction in (smooth.reconstruct(x), found.reconstruction):
        torch.testing.assert_close(reconstruction, expected)
    losses = plain.distances(x, expected)
    torch.testing.assert_close(found.scores["total"], losses["total"])
    torch.testing.assert_close(found.scores["image"], (x - expected).square().flatten(1).mean(1))
    phase = EncoderPhase(smooth, torch.optim.SGD)
    phase.log_dict = lambda *a, **k: None
    torch.testing.assert_close(phase.training_step({"image": x}, 0), losses["total"].mean())
    balance = phase.balance(x[:2], x[2:])["balance"]
    torch.testing.assert_close(torch.tensor(balance), losses["image"][2] / losses["feature"][2])


def test_the_critic_of_phase_1_sees_the_generator_as_it_is():
    z = torch.randn(2, 8)
    torch.testing.assert_close(tiny(True).generator(z), tiny(False).generator(z))
