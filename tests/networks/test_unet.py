import pytest
import torch
from torch import nn

from anomaly3d.networks.autoencoder import Autoencoder
from anomaly3d.networks.unet import VolumeUNet


@torch.no_grad()
@pytest.mark.parametrize("resolution", [16, 24, 32, 48])
@pytest.mark.parametrize("network", [VolumeUNet, lambda width, side: Autoencoder(width, 4, side)])
def test_no_wide_kernel_sees_fewer_than_four_voxels_a_side(network, resolution):
    """There bfloat16 weight gradients are wrong (torch 2.13, CPU)."""
    net, sides = network(8, resolution), []
    for layer in net.modules():
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and layer.kernel_size != (1, 1, 1):
            layer.register_forward_hook(lambda layer, args, out: sides.append(min(args[0].shape[-1], out.shape[-1])))
    made = net(torch.rand(1, 1, *(resolution,) * 3))
    assert made.shape[-1] == resolution
    assert min(sides) >= 4
    assert len(sides) >= 2


def test_detail_goes_around_the_coarsest_layer():
    """With all layers below half resolution silent it still answers to the volume."""
    torch.manual_seed(0)
    net = VolumeUNet(8, 16)
    for parameter in net.layers.model[1].submodule.parameters():
        nn.init.zeros_(parameter)
    x = torch.rand(1, 1, 16, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, 0, 8, 8, 8], x)
    assert gradient[0, 0, 7:10, 7:10, 7:10].abs().max() > 0
