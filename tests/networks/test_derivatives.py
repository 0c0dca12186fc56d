import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from anomaly3d.networks import derivatives
from anomaly3d.networks.derivatives import double, halve, leaky_relu
from anomaly3d.networks.layers import DownsampleConv

SIZES = {2: (3, 2), 3: (3, 2, 4)}  # of the half
HALVE, DOUBLE = {2: F.conv2d, 3: F.conv3d}, {2: F.conv_transpose2d, 3: F.conv_transpose3d}


def arguments(dims: int, large: int, small: int, dtype: torch.dtype = torch.double) -> list[torch.Tensor]:
    """A volume of ``large`` channels, one of half its size with ``small`` channels, a kernel, a bias."""
    torch.manual_seed(0)
    half = SIZES[dims]
    shapes = [(2, large, *(2 * side for side in half)), (2, small, *half), (small, large, *(4,) * dims), (small,)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("large", [1, 3])
def test_both_are_torchs_convolutions(dims, large):
    whole, half, kernel, bias = arguments(dims, large, 5)
    options = {"stride": 2, "padding": 1}
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(halve(whole, kernel, bias), HALVE[dims](whole, kernel, bias, **options), **close)
    torch.testing.assert_close(double(half, kernel), DOUBLE[dims](half, kernel, **options), **close)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("large", [1, 2])
def test_derivatives_of_first_and_second_order(dims, large):
    whole, half, kernel, bias = arguments(dims, large, 3)
    for function, inputs in ((halve, (whole, kernel, bias)), (double, (half, kernel))):
        assert gradcheck(function, inputs, fast_mode=True)
        assert gradgradcheck(function, inputs, fast_mode=True)


def test_a_torch_that_does_not_tell_what_is_asked_for_gives_the_same(monkeypatch):
    """The penalty's gradients, which are of second order, by the slower public path."""
    whole, _, kernel, bias = arguments(3, 2, 3)

    def penalty():
        score = leaky_relu(halve(whole, kernel, bias), 0.2).square().sum()
        (slope,) = torch.autograd.grad(score, whole, create_graph=True)
        return torch.autograd.grad((slope.norm() - 1) ** 2, (kernel, bias))

    calls = []
    kept = derivatives.KernelGradient.apply
    monkeypatch.setattr(derivatives.KernelGradient, "apply", lambda *a: (calls.append(1), kept(*a))[1])
    told, needed = penalty(), len(calls)
    monkeypatch.setattr(derivatives, "asked", None)
    for found, wanted in zip(penalty(), told, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert len(calls) - needed > needed  # some of them for nothing


@pytest.mark.parametrize("large", [1, 8])
def test_autocast_rounds_to_bfloat16_and_gradients_stay_float32(large):
    whole, half, kernel, bias = arguments(3, large, 16, torch.float32)
    for function, inputs in ((halve, (whole, kernel, bias)), (double, (half, kernel))):
        exact = function(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = function(*inputs)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), exact, rtol=0.02, atol=0.02 * exact.detach().std().item())
        gradients = torch.autograd.grad(rounded.float().square().sum(), inputs)
        assert all(g.dtype == torch.float32 for g in gradients)
        for found, wanted in zip(gradients, torch.autograd.grad(exact.square().sum(), inputs), strict=True):
            assert F.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.999


def test_a_layer_begins_as_torchs_own():
    torch.manual_seed(3)
    ours = DownsampleConv(3, 5)
    torch.manual_seed(3)
    theirs = torch.nn.Conv3d(3, 5, 4, stride=2, padding=1)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)


def test_a_gradient_that_nobody_asked_for_is_not_computed(monkeypatch):
    whole, half, kernel, _ = arguments(3, 1, 3)

    def fail(*_):
        raise AssertionError("the kernel's gradient was computed")

    monkeypatch.setattr(derivatives.KernelGradient, "apply", fail)
    for y, x in ((halve(whole, kernel), whole), (double(half, kernel), half)):
        assert torch.autograd.grad(y.sum(), x, retain_graph=True)[0].shape == x.shape
        with pytest.raises(AssertionError, match="kernel"):
            y.sum().backward()


def test_leaky_relu_is_torchs_and_adds_nothing_to_second_derivatives():
    x = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.double, requires_grad=True)
    assert torch.equal(leaky_relu(x, 0.2), F.leaky_relu(x, 0.2))
    assert gradcheck(lambda x: leaky_relu(x, 0.2), (x[[0, 2]],))
    assert gradgradcheck(lambda x: leaky_relu(x, 0.2), (x[[0, 2]],))
    scale = torch.tensor(1.0, requires_grad=True)
    (g,) = torch.autograd.grad(leaky_relu(scale * x, 0.2).sum(), x, create_graph=True)
    g.sum().backward()
    assert scale.grad == 0.2 + 0.2 + 1.0  # of -2, 0 and 3
    assert x.grad is None  # torch's own gives zeros here, through every layer below
