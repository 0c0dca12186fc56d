"""Operations with their derivatives written out, because a WGAN-GP differentiates them twice and torch is slow at that.

``halve`` is a convolution of kernel 4, stride 2, padding 1, ``double`` its transpose. Each of them, and the gradient of
their kernel, is linear in both arguments, and its derivatives are the other two. torch computes the same; but on a CPU
its transposed convolution to one channel (a generated volume, and every gradient with respect to a volume) takes five
times as long, and it finds the kernel's part of the penalty's gradient by a convolution as large as the volume.
``leaky_relu`` has no second derivative, for which torch carries a volume of zeros back through the whole critic.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

STRIDE, PADDING = 2, 1
CONV = {4: F.conv2d, 5: F.conv3d}  # by number of axes
TRANSPOSED = {4: F.conv_transpose2d, 5: F.conv_transpose3d}
# whether the engine will run a node in this pass: private, tried with torch 2.13, and absent one day
asked = getattr(torch._C, "_will_engine_execute_node", None)


def halve(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    """``conv(x, kernel, bias, stride=2, padding=1)``: ``(B, I, 2D, 2H, 2W)`` -> ``(B, O, D, H, W)``.

    Args:
        kernel: ``(O, I, 4, 4, 4)``, or without the last axis for slices.
        bias: ``(O,)``.
    """
    return Halve.apply(*as_autocast(x, kernel, bias))


def double(x: Tensor, kernel: Tensor) -> Tensor:
    """The transpose of ``halve`` with the same kernel: ``(B, O, D, H, W)`` -> ``(B, I, 2D, 2H, 2W)``."""
    return Double.apply(*as_autocast(x, kernel))


def leaky_relu(x: Tensor, slope: float) -> Tensor:
    """``x`` where it is positive, else ``slope * x``."""
    return Slopes.apply(x, x.detach(), slope)


def as_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """In autocast's dtype where it is on, as for torch's own convolutions; and no leaves, for ``wanted``."""
    device = next(t for t in tensors if t is not None).device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return [t if t is None else t.to(dtype or t.dtype).view_as(t) for t in tensors]


def wanted(ctx: Any) -> list[bool]:
    """Which tensors of an operation's arguments get a gradient in this backward pass: not all that require one.

    ``autograd.grad(y, x)`` wants none of the kernels. Of a leaf torch cannot tell, so it counts as wanted; where torch
    tells nothing, all that require a gradient do, which costs time only.
    """
    if asked is None:
        return list(ctx.needs_input_grad)
    nodes = [node for node, _ in ctx.next_functions]
    return [n is not None and (hasattr(n, "variable") or asked(n)) for n in nodes]


class Halve(Function):
    """See ``halve``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, kernel)
        return CONV[x.ndim](x, kernel, bias, stride=STRIDE, padding=PADDING)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None, None
        x, kernel = ctx.saved_tensors
        for_x, for_kernel, *for_bias = wanted(ctx)
        return (
            Double.apply(g, kernel) if for_x else None,
            KernelGradient.apply(x, g, kernel) if for_kernel else None,
            g.sum([0, *range(2, x.ndim)]) if any(for_bias) else None,
        )


class Double(Function):
    """See ``double``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, kernel)
        if x.ndim == 5 and kernel.shape[1] == 1:
            return double_by_cells(x, kernel)
        return TRANSPOSED[x.ndim](x, kernel, stride=STRIDE, padding=PADDING)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        if g is None:
            return None, None
        x, kernel = ctx.saved_tensors
        for_x, for_kernel = wanted(ctx)
        return (
            Halve.apply(g, kernel, None) if for_x else None,
            KernelGradient.apply(g, x, kernel) if for_kernel else None,
        )


class KernelGradient(Function):
    """Of ``(halve(x, kernel) * g).sum()`` with respect to ``kernel``, of which only shape and layout count."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, kernel: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, g)
        n = x.ndim - 2
        stride, padding, dilation, output_padding = [STRIDE] * n, [PADDING] * n, [1] * n, [0] * n
        asked = [False, True, False]  # of the gradients of x, kernel and bias
        return torch.ops.aten.convolution_backward(
            g, x, kernel, None, stride, padding, dilation, False, output_padding, 1, asked
        )[1]

    @staticmethod
    def backward(ctx: Any, k: Tensor | None) -> tuple[Tensor | None, ...]:
        if k is None:
            return None, None, None
        x, g = ctx.saved_tensors
        for_x, for_g, _ = wanted(ctx)
        return Double.apply(g, k) if for_x else None, Halve.apply(x, k, None) if for_g else None, None


class Slopes(Function):
    """``g`` where ``x`` is positive, else ``slope * g``; linear in ``g``, flat in ``x``."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, slope: float) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x)
        ctx.slope = slope
        return torch.ops.aten.leaky_relu_backward(g, x, slope, False)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None if g is None else Slopes.apply(g, *ctx.saved_tensors, ctx.slope)), None, None


def double_by_cells(x: Tensor, kernel: Tensor) -> Tensor:
    """``double`` to one channel, as a convolution of kernel 2 whose channels are the voxels of a 2x2x2 cell.

    The cells begin one voxel outside of the volume, so there is one more of them along each axis than voxels in ``x``.
    """
    taps = kernel.reshape(-1, 2, 2, 2, 2, 2, 2)  # (O, and for each axis: cell, voxel in it)
    cells = F.conv_transpose3d(x, taps.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 3))
    voxels = cells.unflatten(1, (2, 2, 2)).permute(0, 4, 1, 5, 2, 6, 3)
    padded = voxels.reshape(x.shape[0], 1, *(2 * (side + 1) for side in x.shape[2:]))
    return padded[:, :, 1:-1, 1:-1, 1:-1].contiguous()
