import pytest
import torch

from anomaly3d.detectors.anogan import AnoGAN
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.detectors.noise import noise_of
from anomaly3d.errors import UserError
from anomaly3d.phases.base import freeze
from tests.detectors.test_generative import MODEL, heads


def tiny(**more):
    torch.manual_seed(0)
    detector = AnoGAN(MODEL, **more).eval()
    freeze(detector)
    return detector


def test_the_score_is_the_weighted_sum_of_both_losses():
    detector, (x, y) = tiny(weight=0.25), torch.rand(2, 2, 1, 16, 16, 16)
    found = detector.distances(x, y)
    features = (detector.critic.features(x) - detector.critic.features(y)).abs().flatten(1).mean(1)
    torch.testing.assert_close(found["image"], (x - y).abs().flatten(1).mean(1))
    torch.testing.assert_close(found["feature"], features)
    torch.testing.assert_close(found["total"], 0.75 * found["image"] + 0.25 * features)


def test_the_search_finds_what_the_generator_can_make():
    detector = tiny(steps=150, rate=0.05)
    x = detector.generator(0.5 * torch.randn(2, 8)).detach()
    found = detector.examine({"image": x}).scores["total"]
    begun = detector.distances(x, detector.decode(noise_of(x, 8)))["total"]
    assert (found < 0.1 * begun).all()


def test_a_step_of_adam_goes_against_the_gradients_sign():
    detector, x = tiny(steps=1, rate=0.05), heads(2)
    z = noise_of(x, 8).requires_grad_()
    (gradient,) = torch.autograd.grad(detector.distances(x, detector.decode(z))["total"].sum(), z)
    torch.testing.assert_close(detector.search(x), z.detach() - 0.05 * gradient.sign(), rtol=1e-3, atol=1e-3)


def test_where_the_search_begins():
    x = heads(2)
    assert torch.equal(tiny(steps=0).search(x), noise_of(x, 8))
    by_encoder = tiny(steps=0, start="encoder")
    torch.testing.assert_close(by_encoder.search(x), by_encoder.encoder(x))


def test_it_takes_the_networks_of_fanogan():
    torch.manual_seed(5)
    trained, detector = FAnoGAN(MODEL), tiny()
    detector.load_state_dict(trained.state_dict())
    z = torch.randn(2, 8)
    torch.testing.assert_close(detector.decode(z), trained.eval().decode(z))


@pytest.mark.parametrize(("key", "value"), [("weight", 1.0), ("start", "middle")])
def test_impossible_searches_are_refused(key, value):
    with pytest.raises(UserError, match=f"detector.module.{key}.*{value}"):
        tiny(**{key: value})
