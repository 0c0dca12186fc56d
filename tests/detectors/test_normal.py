import torch
from torch.distributions import Normal, kl_divergence

from anomaly3d.detectors.normal import divergence, drawn


def test_the_divergence_is_that_of_torch():
    mean, logvar, to_mean, to_logvar = torch.randn(4, 2, 3, 5)
    first, second = Normal(mean, (logvar / 2).exp()), Normal(to_mean, (to_logvar / 2).exp())
    torch.testing.assert_close(divergence(mean, logvar, to_mean, to_logvar), kl_divergence(first, second))
    torch.testing.assert_close(divergence(mean, logvar), kl_divergence(first, Normal(0.0, 1.0)))


def test_draws_have_the_moments_and_pass_gradients_on():
    torch.manual_seed(0)
    mean = torch.full((100_000,), 2.0, requires_grad=True)
    z = drawn(mean, torch.full((100_000,), -1.0))
    torch.testing.assert_close(z.mean(), torch.tensor(2.0), rtol=0, atol=0.01)
    torch.testing.assert_close(z.var(), torch.tensor(-1.0).exp(), rtol=0.02, atol=0)
    z.sum().backward()
    assert torch.equal(mean.grad, torch.ones(100_000))
