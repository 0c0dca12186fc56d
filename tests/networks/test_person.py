"""What networks make of who a scan shows."""

import pytest
import torch

from anomaly3d.networks.gan import Critic, Encoder, Generator
from anomaly3d.networks.person import NUMBERS, FiLM, known, with_person


def test_numbers_become_channels_that_are_the_same_everywhere():
    x, person = torch.rand(2, 1, 2, 3, 4), torch.rand(2, NUMBERS)
    found = with_person(x, person)
    assert found.shape == (2, 1 + NUMBERS, 2, 3, 4)
    torch.testing.assert_close(found[:, :1], x)
    for place in ((0, 0, 0), (1, 2, 3)):
        torch.testing.assert_close(found[(slice(None), slice(1, None), *place)], person)
    torch.testing.assert_close(with_person(x[:, :, 0, 0, 0], person), torch.cat([x[:, :, 0, 0, 0], person], 1))


def test_slices_of_a_volume_show_one_person_and_who_is_not_named_is_nobody():
    person = torch.tensor([[1.0, 1, 0, 1], [-1, 1, 1, 0]])
    torch.testing.assert_close(known(torch.rand(6, 1, 4, 4), person), person[[0, 0, 0, 1, 1, 1]])
    torch.testing.assert_close(known(torch.rand(3, 5), None), torch.zeros(3, NUMBERS))


def test_film_changes_nothing_at_first_and_then_scales_and_shifts_each_channel():
    film, x, person = FiLM(2), torch.rand(3, 2, 2, 3, 4), torch.rand(3, NUMBERS)
    torch.testing.assert_close(film(x, person), x)
    with torch.no_grad():
        film.map.weight.copy_(torch.rand(4, NUMBERS))
        film.map.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    maps = person @ film.map.weight.T + film.map.bias
    for channel in (0, 1):
        scale, shift = maps[:, channel, None, None, None], maps[:, 2 + channel, None, None, None]
        torch.testing.assert_close(film(x, person)[:, channel], x[:, channel] * (1 + scale) + shift)
    torch.testing.assert_close(
        film(x[:, :, 0, 0, 0], None), x[:, :, 0, 0, 0] * torch.tensor([1.1, 1.2]) + film.map.bias[2:]
    )


@pytest.mark.parametrize("told", ["concat", "film"])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_network_that_is_told_answers_by_the_person_and_one_that_is_not_does_not(told, spatial_dims):
    torch.manual_seed(0)
    x, z = torch.rand(2, 1, *(16,) * spatial_dims), torch.randn(2, 8)
    old, young = (torch.tensor([[age, 1.0, 0, 1]]).expand(2, -1) for age in (1.5, -1.0))
    for way in ("none", told):
        networks = [
            (Generator(4, 8, 16, "group", spatial_dims, way), z),
            (Critic(4, 16, "none", spatial_dims, way), x),
            (Encoder(4, 8, 16, "group", "tanh", spatial_dims, way), x),
        ]
        for network, seen in networks:
            for layer in network.modules():
                if isinstance(layer, FiLM):
                    torch.nn.init.normal_(layer.map.weight)
            differs = (network(seen, old) - network(seen, young)).abs().max() > 1e-4
            assert differs == (way != "none")
            torch.testing.assert_close(network(seen), network(seen, torch.zeros(2, NUMBERS)))


def test_another_way_of_telling_is_refused():
    with pytest.raises(ValueError, match="'none', 'concat' or 'film', not 'maps'"):
        Generator(4, 8, 16, told="maps")
