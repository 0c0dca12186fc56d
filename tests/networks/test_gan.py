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


def normalised(layer, norm, x):
    """The paper's norms by their definitions, of a layer with its own weights and biases."""
    axes = tuple(range(2, x.ndim))
    if norm == "none":
        return x
    if norm == "group":
        groups = x.unflatten(1, (min(8, x.shape[1]), -1))
        over = tuple(range(2, groups.ndim))
        mean, variance = groups.mean(over, keepdim=True), groups.var(over, unbiased=False, keepdim=True)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    elif layer.training:
        over = (0, *axes)
        x = (x - x.mean(over, keepdim=True)) / (x.var(over, unbiased=False, keepdim=True) + 1e-5).sqrt()
    else:
        mean, variance = (v.view(-1, *(1,) * len(axes)) for v in (layer.running_mean, layer.running_var))
        x = (x - mean) / (variance + 1e-5).sqrt()
    return x * layer.weight.view(-1, *(1,) * len(axes)) + layer.bias.view(-1, *(1,) * len(axes))


def uneven(network):
    """Norms whose weights and running statistics are not those they begin with."""
    for name, values in [*network.named_parameters(), *network.named_buffers()]:
        if values.ndim == 1 and values.is_floating_point():
            torch.nn.init.uniform_(values, *((0.5, 1.5) if name.endswith(("weight", "var")) else (-0.5, 0.5)))
    return network.double()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_critic_and_encoder_are_the_papers_table(norm, training):
    """Convolutions of kernel 4 that halve, a norm after each but the first, slope 0.2; then one linear map."""
    torch.manual_seed(0)
    sizes = dict(channels=12, resolution=16, norm=norm)
    x = torch.rand(3, 1, 16, 16, 16, dtype=torch.double) * 2 - 1
    critic = uneven(Critic(**sizes)).train(training)
    tanh, linear = (uneven(Encoder(latent=5, output=output, **sizes)).train(training) for output in ("tanh", "linear"))
    for network, end in ((critic, torch.flatten), (tanh, torch.tanh), (linear, torch.clone)):
        first, _, second, layer, _ = network.trunk.layers
        y = F.leaky_relu(F.conv3d(x, first.weight, first.bias, stride=2, padding=1), 0.2)
        y = F.conv3d(y, second.weight, second.bias, stride=2, padding=1)
        y = F.leaky_relu(normalised(layer, norm, y), 0.2)
        expected = end(F.linear(y.flatten(1), network.head.weight, network.head.bias))
        torch.testing.assert_close(network(x), expected, rtol=1e-9, atol=1e-9)
        if network is critic:
            torch.testing.assert_close(critic.features(x), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_the_generator_is_the_papers_table(norm, training):
    """A linear map to 4^3; nearest x2, kernel 3 without bias, norm and ReLU; the last ends in tanh without a norm."""
    torch.manual_seed(0)
    generator = uneven(Generator(channels=16, latent=5, resolution=16, norm=norm)).train(training)
    z = torch.randn(3, 5, dtype=torch.double)
    x = F.linear(z, generator.seed.weight).view(3, 32, 4, 4, 4)
    x = F.relu(normalised(generator.seed_norm, norm, x))
    convolve, layer, _ = generator.blocks
    x = F.conv3d(F.interpolate(x, scale_factor=2.0), convolve.weight, padding=1)
    x = F.relu(normalised(layer, norm, x))
    x = torch.tanh(F.conv3d(F.interpolate(x, scale_factor=2.0), generator.to_image.weight, padding=1))
    torch.testing.assert_close(generator(z), x, rtol=1e-9, atol=1e-9)
