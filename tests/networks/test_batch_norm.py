import copy

import pytest
import torch
from torch import nn

from anomaly3d.networks.batch_norm import mixes_volumes, share_statistics


@pytest.fixture
def group(tmp_path):
    """A group of one process; tests/phases/test_processes.py has two."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("more", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}])
def test_alone_it_is_torchs_up_to_the_second_derivative(group, more):
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv3d(1, 3, 3), nn.BatchNorm3d(3, **more), nn.Tanh(), nn.Conv3d(3, 1, 2)).double()
    ours = copy.deepcopy(theirs)
    share_statistics(ours)
    found = []
    for network in (theirs, ours):
        for step in range(3):
            x = torch.rand(4, 1, 5, 4, 6, generator=torch.Generator().manual_seed(step)).double().requires_grad_()
            y = network(x)
            (gradient,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        gradients = torch.autograd.grad(penalty, network.parameters(), allow_unused=True)
        state = [*network.state_dict().values(), network.eval()(x)]
        found.append([y, gradient, *(g for g in gradients if g is not None), *state])
    assert len(found[0]) == len(found[1])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a)


def test_it_keeps_the_precision_of_its_input(group):
    layer = nn.BatchNorm3d(2)
    share_statistics(layer)
    x = torch.rand(3, 2, 4, 3, 2).bfloat16()
    torch.testing.assert_close(layer(x), nn.BatchNorm3d(2)(x))


def test_a_copy_has_statistics_of_its_own(group):
    """As the averaged weights of callbacks=ema."""
    layer = nn.BatchNorm3d(2)
    share_statistics(layer)
    twin = copy.deepcopy(layer)
    twin(torch.rand(3, 2, 4, 3, 2))
    assert layer.running_mean.abs().max() == 0 < twin.running_mean.abs().max()


def test_which_networks_mix_the_volumes_of_a_batch():
    assert mixes_volumes(nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)))
    assert not mixes_volumes(nn.Sequential(nn.Conv3d(1, 8, 3), nn.GroupNorm(2, 8)))
