import pytest
import torch

from anomaly3d.networks.diffusion_unet import DiffusionUNet, from_cells, sinusoids, to_cells


def test_cells_hold_their_voxels_and_come_back():
    x = torch.arange(2 * 4 * 6 * 8.0).view(2, 1, 4, 6, 8)
    cells = to_cells(x)
    assert cells.shape == (2, 8, 2, 3, 4)
    assert set(cells[1, :, 1, 2, 0].tolist()) == set(x[1, 0, 2:4, 4:6, 0:2].flatten().tolist())
    assert torch.equal(from_cells(cells), x)


def test_it_begins_by_seeing_no_noise_and_then_knows_the_time():
    torch.manual_seed(0)
    network, x = DiffusionUNet([8, 16]), torch.randn(2, 1, 8, 12, 4)
    t = torch.tensor([1, 200])
    assert not network(x, t).any()
    torch.nn.init.normal_(network.leave[-1].weight)
    found = network(x, t)
    assert found.shape == x.shape
    torch.testing.assert_close(network(x[1:], t[1:]), found[1:], rtol=1e-3, atol=1e-4)
    assert (network(x, t.flip(0)) - found).abs().max() > 1e-2


def test_every_weight_is_used():
    torch.manual_seed(0)
    network = DiffusionUNet([8, 8, 8])
    torch.nn.init.normal_(network.leave[-1].weight)
    network(torch.randn(1, 1, 16, 16, 8), torch.tensor([7])).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.mark.parametrize("count", [8, 32])
def test_times_are_told_apart(count):
    waves = sinusoids(torch.arange(0, 1000, 50), count)
    assert waves.shape == (20, count)
    assert torch.pdist(waves).min() > 0.05
