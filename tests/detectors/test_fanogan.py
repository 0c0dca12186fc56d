import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig, smoothed
from anomaly3d.errors import UserError
from anomaly3d.phases.encoder import EncoderPhase


def tiny(smooth, **more):
    torch.manual_seed(0)
    return FAnoGAN(ModelConfig(4, 8, 16, "group", "none", "group", "tanh", 3), smooth=smooth, **more)


def test_the_filter_takes_out_what_alternates_and_keeps_what_is_even():
    i, j, k = torch.meshgrid(*map(torch.arange, (8, 7, 6)), indexing="ij")
    for lines in (i, j, k, i + j + k):
        x = 0.2 + 0.5 * (-1.0) ** lines[None, None]
        torch.testing.assert_close(smoothed(x)[..., 1:-1, 1:-1, 1:-1], torch.full((1, 1, 6, 5, 4), 0.2))
    slope = (i + 2 * j - k)[None, None] / 40
    torch.testing.assert_close(smoothed(slope)[..., 1:-1, 1:-1, 1:-1], slope[..., 1:-1, 1:-1, 1:-1])
    torch.testing.assert_close(smoothed(torch.full((2, 1, 5, 4, 3), -1.0)), torch.full((2, 1, 5, 4, 3), -1.0))


def test_features_are_those_after_a_halving_that_there_is():
    """16^3 down to 4^3 takes two."""
    for layer in (0, 3):
        with pytest.raises(UserError, match=r"feature_layer must be null or 1 to 2, not"):
            tiny(False, feature_layer=layer)
    x = torch.rand(2, 1, 16, 16, 16)
    first, last, usual = (tiny(False, feature_layer=layer).eval() for layer in (1, 2, None))
    assert torch.equal(last.distances(x, -x)["feature"], usual.distances(x, -x)["feature"])
    assert not torch.equal(first.distances(x, -x)["feature"], usual.distances(x, -x)["feature"])


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


@torch.no_grad()
def test_a_mirrored_detector_judges_by_the_mean_of_both_sides_and_trains_by_one():
    x = torch.rand(2, 1, 16, 16, 16) * 2 - 1
    plain, mirrored = tiny(True).eval(), tiny(True, mirrored=True).eval()
    other = torch.stack([plain.reconstruct(x[i : i + 1, :, range(15, -1, -1)])[0] for i in range(2)])
    expected = (plain.reconstruct(x) + other[:, :, range(15, -1, -1)]) / 2
    assert (expected - plain.reconstruct(x)).abs().max() > 0.01
    found = mirrored.examine({"image": x})
    torch.testing.assert_close(found.reconstruction, expected)
    for name, value in plain.distances(x, expected).items():
        torch.testing.assert_close(found.scores[name], value)
    torch.testing.assert_close(mirrored.losses(x)["total"], plain.losses(x)["total"])
    turned = mirrored.examine({"image": x.flip(2)})
    torch.testing.assert_close(turned.reconstruction.flip(2), found.reconstruction)


def test_the_critic_of_phase_1_sees_the_generator_as_it_is():
    z = torch.randn(2, 8)
    torch.testing.assert_close(tiny(True).generator(z), tiny(False).generator(z))


class Power(nn.Module):
    """The mean of x^2, or that number at each voxel of 1 x 2 x 3, or 5 x^2: networks without weights."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        if self.what == "encoder":
            return x.square().flatten(1).mean(1, keepdim=True)
        return 5 * x.square() if self.what == "features" else x.view(-1, 1, 1, 1, 1).expand(-1, 1, 1, 2, 3)


def test_the_anomaly_score_by_hand():
    """Half of the first scan is 0.2 and half 0.6, so E(x) = 0.2 and G(E(x)) is 0.2 everywhere; the second is 0."""
    detector = FAnoGAN(ModelConfig(1, 1, 8, "none", "none", "none", "linear"), kappa=0.5)
    detector.encoder, detector.generator = Power("encoder"), Power("generator")
    detector.critic.trunk.layers = nn.Sequential(Power("features"))
    x = torch.tensor([[0.2, 0.6, 0.2, 0.6, 0.2, 0.6], [0.0] * 6]).view(2, 1, 1, 2, 3)
    found = detector.examine({"image": x})
    image = 0.4**2 / 2  # eq. 4: half of the voxels differ by 0.4
    feature = (1.8 - 0.2) ** 2 / 2  # eq. 5: there 5 x^2 is 1.8 in place of 0.2
    expected = {"image": image, "feature": feature, "total": image + 0.5 * feature, "latent": (0.2 - 0.04) ** 2}
    assert found.scores.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.scores[name], torch.tensor([value, 0.0]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.reconstruction[0], torch.full((1, 1, 2, 3), 0.2))


@pytest.mark.parametrize(("layer", "halvings"), [(None, 2), (1, 1), (2, 2)])
def test_features_are_the_critics_after_the_named_halving(layer, halvings):
    torch.manual_seed(0)
    detector = FAnoGAN(ModelConfig(4, 8, 16, "group", "none", "group", "tanh"), 0.3, layer)
    x, other = torch.rand(2, 2, 1, 16, 16, 16) * 2 - 1
    convolutions = [layer for layer in detector.critic.trunk.layers if hasattr(layer, "bias")]

    def f(v):
        for layer in convolutions[:halvings]:
            v = F.leaky_relu(F.conv3d(v, layer.weight, layer.bias, stride=2, padding=1), 0.2)
        return v

    found = detector.distances(x, other)
    expected = (f(x) - f(other)).square().mean((1, 2, 3, 4))
    torch.testing.assert_close(found["feature"], expected)
    torch.testing.assert_close(found["total"], found["image"] + 0.3 * expected)


def test_a_point_is_spread_over_its_neighbours_by_a_smooth_detector():
    """One bright voxel of G(z), in the middle and in a corner: 1/2 stays along each axis, 1/4 goes to either side."""
    volume = torch.full((1, 1, 5, 4, 3), -1.0)
    volume[0, 0, 2, 2, 1] = volume[0, 0, 0, 0, 0] = 0.6
    for smooth in (True, False):
        detector = tiny(smooth)
        detector.generator = nn.Flatten(0, 0)  # gives back what it gets
        found = detector.decode(volume)[0, 0] + 1
        assert found[2, 2, 1] == pytest.approx(1.6 / 8 if smooth else 1.6)
        for place, share in {(1, 2, 1): 16, (2, 3, 1): 16, (2, 2, 0): 16, (1, 3, 1): 32, (3, 3, 2): 64}.items():
            assert found[place] == pytest.approx(1.6 / share if smooth else 0, abs=1e-6)
        assert found[0, 0, 0] == pytest.approx(1.6 / 8 if smooth else 1.6)
        assert found[1, 1, 1] == pytest.approx((1.6 / 64 + 1.6 / 32) if smooth else 0, abs=1e-6)


def test_what_an_earlier_phase_restored_is_said_again():
    """Else scores and checkpoints would be chosen by what has been taught."""
    parent = tiny(True, restored=["lump"])
    with pytest.raises(UserError, match=r"restored=\[lump\]: say so again"):
        tiny(True).begin_with(parent)
    tiny(True, restored=["lump", "fluid"]).begin_with(parent)
    tiny(True, restored=["lump"]).begin_with(tiny(True))
