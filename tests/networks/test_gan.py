import pytest
import torch
import torch.nn.functional as F

from anomaly3d.networks.gan import Critic, Encoder, Generator, base_and_doublings
from anomaly3d.networks.layers import UpsampleConv


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_parameter_counts_of_the_paper(norm):
    with torch.device("meta"):
        assert parameters(Generator(norm=norm)) == 86_568_512
        assert parameters(Encoder(norm=norm)) == 92_939_396
        assert parameters(Critic(norm=norm)) == 11_049_665
        assert parameters(Critic(norm="none")) == 11_047_873


@pytest.mark.parametrize("dims", [2, 3])
def test_fused_upsampling_is_nearest_then_convolution(dims):
    torch.manual_seed(0)
    layer = UpsampleConv(3, 5, dims).double()
    x = torch.randn(2, 3, *(5, 4, 3)[:dims], dtype=torch.double)
    convolve = F.conv3d if dims == 3 else F.conv2d
    expected = convolve(F.interpolate(x, scale_factor=2, mode="nearest"), layer.weight, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("resolution", "dims"), [(16, 3), (24, 3), (32, 2), (48, 2)])
def test_shapes_and_ranges(resolution, dims):
    sizes = dict(channels=4, resolution=resolution, spatial_dims=dims)
    z = 5 * torch.randn(3, 7)
    x = Generator(latent=7, **sizes)(z)
    assert x.shape == (3, 1, *(resolution,) * dims)
    assert x.abs().max() <= 1
    assert Critic(**sizes)(x).shape == (3,)
    latent = Encoder(latent=7, **sizes)(x)
    assert latent.shape == (3, 7)
    assert latent.abs().max() <= 1


@pytest.mark.parametrize("make", [Generator, Encoder])
def test_default_norms_do_not_depend_on_the_batch(make):
    torch.manual_seed(0)
    network = make(channels=4, latent=7, resolution=16)
    x = torch.randn(4, 7) if make is Generator else torch.randn(4, 1, 16, 16, 16)
    torch.testing.assert_close(network(x)[:1], network(x[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resolution", [0, 4, 6, 40, 65])
def test_impossible_resolutions_are_refused(resolution):
    with pytest.raises(ValueError, match="power of two"):
        base_and_doublings(resolution)
