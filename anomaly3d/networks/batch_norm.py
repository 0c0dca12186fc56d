"""BatchNorm over the batches of all processes, differentiable twice, and counting each batch once.

``torch.nn.SyncBatchNorm`` is not: its backward pass talks to the other processes where autograd does not see it, and
the gradient penalty of a WGAN-GP goes through that pass again. Nor does it run on a CPU.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from anomaly3d.system.processes import place


class SumOverProcesses(Function):
    """The sum of all processes' tensors. Each process's loss depends on it, so its gradient is their sum too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return SumOverProcesses.apply(g)


def mixes_volumes(network: nn.Module) -> bool:
    """Whether a volume's output depends on the others of its batch."""
    return any(isinstance(layer, _BatchNorm) for layer in network.modules())


def counted_once(network: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds a pass and its repetition for gradients, whose batch running statistics must not count again."""
    return nullcontext(), uncounted([layer for layer in network.modules() if isinstance(layer, _BatchNorm)])


@contextmanager
def uncounted(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Running statistics stay as they are inside."""
    kept = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, (momentum, count) in zip(layers, kept, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, count


def share_statistics(network: nn.Module) -> None:
    """Let every BatchNorm of a network train as if the batches of all processes were one."""
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.forward = partial(normalise, layer)  # type: ignore[method-assign]


def normalise(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What ``layer`` makes of ``x (B, C, ...)``; each process has the same B."""
    if not layer.training:
        return type(layer).forward(layer, x)
    axes, shape = [0, *range(2, x.ndim)], (1, -1, *(1,) * (x.ndim - 2))
    count = place()[1] * x.numel() // x.shape[1]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = SumOverProcesses.apply(wide.sum(axes)) / count
    centred = wide - mean.view(shape)
    variance = SumOverProcesses.apply(centred.square().sum(axes)) / count
    if layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None:
        with torch.no_grad():
            layer.num_batches_tracked += 1
            share = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean, share)
            layer.running_var.lerp_(variance * count / (count - 1), share)
    y = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        y = y * layer.weight.view(shape) + layer.bias.view(shape)
    return y.to(x.dtype)
