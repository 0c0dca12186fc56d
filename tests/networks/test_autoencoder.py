import pytest
import torch

from anomaly3d.networks.autoencoder import Autoencoder


def sensitivity(net, x, outputs):
    """Gradients of some random sums of the reconstruction with respect to the volume, ``(outputs, voxels)``."""
    made = net(x)
    rows = [torch.autograd.grad((made * torch.randn_like(made)).sum(), x, retain_graph=True)[0] for _ in range(outputs)]
    return torch.stack(rows).flatten(1).double()


@pytest.mark.parametrize(("spatial", "latent", "numbers"), [(False, 3, 3), (True, 1, 8**3)])
def test_nothing_goes_around_the_code(spatial, latent, numbers):
    """The reconstruction answers to as many directions of the volume as the code has numbers."""
    torch.manual_seed(0)
    net = Autoencoder(8, latent, 16, spatial)
    x = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    assert net.encode(x)[0].numel() == numbers
    rank = torch.linalg.matrix_rank(sensitivity(net, x, 6), rtol=1e-5)
    assert rank == min(numbers, 6)


@torch.no_grad()
def test_a_spatial_code_knows_where():
    """What is changed at one end of the volume changes the code there more than at the other."""
    torch.manual_seed(0)
    net = Autoencoder(8, 4, 32, spatial=True)
    x = torch.rand(1, 1, 32, 32, 32)
    changed = x.clone()
    changed[..., :8, :8, :8] += 1
    moved = (net.encode(x) - net.encode(changed)).abs().mean(1)[0]
    assert moved[:2, :2, :2].mean() > 10 * moved[-2:, -2:, -2:].mean()
