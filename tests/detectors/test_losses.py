import torch

from anomaly3d.detectors.losses import (
    approximate_penalty,
    feature_distance,
    gradient_norm,
    gradient_penalty,
    image_distance,
    interpolate,
    slope,
)

SHAPE = (3, 1, 3, 4, 5)


def test_penalty_of_a_linear_critic_is_exact():
    w = torch.randn(SHAPE[1:])
    norm = gradient_norm(lambda x: (x * w).flatten(1).sum(1), torch.randn(SHAPE))
    torch.testing.assert_close(norm, w.norm().expand(3))
    torch.testing.assert_close(gradient_penalty(norm), (w.norm() - 1) ** 2)


def test_gradient_norm_is_over_all_voxels_of_each_volume():
    """D(x) = ||x||^2 / 2 has the gradient x, another one for each volume of the batch."""
    x = torch.randn(SHAPE)
    norm = gradient_norm(lambda v: v.square().flatten(1).sum(1) / 2, x)
    torch.testing.assert_close(norm, x.flatten(1).norm(dim=1))


def test_penalty_can_be_differentiated():
    scale = torch.tensor(2.0, requires_grad=True)
    x = torch.ones(1, 1, 1, 1, 4)
    gradient_penalty(gradient_norm(lambda v: scale * v.flatten(1).sum(1), x)).backward()
    # (||scale * 1||_2 - 1)^2 = (2 scale - 1)^2
    torch.testing.assert_close(scale.grad, torch.tensor(4.0 * (2 * 2.0 - 1)))


def test_penalty_from_two_values_of_the_critic_is_on_average_that_of_its_gradient():
    """A critic with a bend, whose gradient has length 1.5 and then 0.6 at 0; 40,000 directions, so within 1 %."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(60, generator=generator)
    x, noise = torch.zeros(40_000, 60), torch.randn(40_000, 60, generator=generator)
    for length in (1.5, 0.6):
        along = w / w.norm() * length
        slopes = slope(lambda v, along=along: v @ along + 3 * v.square().sum(1), x, noise)
        torch.testing.assert_close(slopes.square().mean(), torch.tensor(length**2), rtol=0.03, atol=0)
        torch.testing.assert_close(
            approximate_penalty(slopes), torch.tensor((length - 1) ** 2), rtol=0, atol=0.02 * length
        )


def test_two_values_of_the_critic_are_taken_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        slopes = slope(lambda v: v @ torch.ones(5, 1) + 300, torch.ones(4, 5), torch.ones(4, 5))
    torch.testing.assert_close(slopes, torch.full((4, 1), 5.0), rtol=1e-2, atol=0)


def test_interpolation_uses_one_epsilon_a_volume():
    real, fake = torch.ones(SHAPE), torch.zeros(SHAPE)
    epsilon = torch.tensor([0.0, 0.25, 1.0])
    mixed = interpolate(real, fake, epsilon)
    torch.testing.assert_close(mixed, epsilon.view(3, 1, 1, 1, 1).expand(SHAPE))


def test_distances_are_means_over_voxels_for_each_volume():
    x = torch.zeros(SHAPE)
    y = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1).expand(SHAPE)
    torch.testing.assert_close(image_distance(x, y), torch.tensor([1.0, 4.0, 9.0]))
    torch.testing.assert_close(feature_distance(x, y), torch.tensor([1.0, 4.0, 9.0]))
