"""What every method that learns by a loss and judges the brain promises, whatever it computes."""

import pytest
import torch

from anomaly3d.detectors.base import build_detector, load_detector
from anomaly3d.errors import UserError
from tests.conftest import detector_config
from tests.detectors.toys import batch

NAMES = ("autoencoder", "vae", "bayesian_autoencoder", "aeu", "denoising", "masked")
TINY = {"resolution": 16, "width": 8, "latent": 4, "samples": 3, "nodes": 4, "block": 4}


def tiny(name, **changes):
    """A detector of ``conf/detector/NAME.yaml``, small."""
    config = detector_config(name)["module"]
    return build_detector({**config, **{k: v for k, v in TINY.items() if k in config}, **changes})


def numbers(found):
    """All that is found, by name."""
    return {**found.scores, **found.maps, "reconstruction": found.reconstruction}


@pytest.fixture(params=NAMES)
def detector(request):
    torch.manual_seed(0)
    return tiny(request.param).eval()


def test_a_few_steps_lower_the_loss(detector):
    healthy = batch(8)
    optimizer = torch.optim.Adam(detector.train().parameters(), 3e-3)

    def loss():
        torch.manual_seed(1)
        return detector.loss(healthy)["loss"]

    with torch.no_grad():
        before = float(loss())
    for _ in range(15):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    with torch.no_grad():
        assert float(loss()) < before - 0.1 * abs(before)


@torch.no_grad()
def test_a_saved_detector_finds_the_same(detector, tmp_path):
    detector.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    assert again.config == detector.config
    expected, found = (numbers(d.examine(batch())) for d in (detector, again))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@torch.no_grad()
def test_findings_depend_on_the_scan_alone(detector):
    """Not on the other scans of the batch, their order, its name, or what was drawn before."""
    scans = batch(4)
    together = numbers(detector.examine(scans))
    torch.manual_seed(99)
    for place in (2, 0):
        alone = {"image": scans["image"][[place]], "brain": scans["brain"][[place]], "scan_id": ["other"]}
        for name, value in numbers(detector.examine(alone)).items():
            torch.testing.assert_close(value[0], together[name][place], rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
def test_it_judges_the_brain_only(detector):
    scans = batch()
    outside = scans["brain"] == 0
    found = detector.examine(scans)
    assert torch.equal(found.reconstruction[outside], scans["image"][outside])
    assert found.reconstruction.abs().max() <= 1
    assert not (found.reconstruction == scans["image"])[~outside].any()
    assert all((values[outside] == 0).all() for values in found.maps.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("key", "value"), [("width", 12), ("resolution", 50)])
def test_an_impossible_size_is_named(name, key, value):
    with pytest.raises(UserError, match=f"{key} must be .*{value}"):
        tiny(name, **{key: value})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("vae", "spread", 0.0),
        ("bayesian_autoencoder", "dropout", 0.0),
        ("bayesian_autoencoder", "samples", 1),
        ("aeu", "floor", 0.0),
        ("denoising", "nodes", 1),
        ("masked", "passes", 1),
    ],
)
def test_an_impossible_setting_is_named(name, key, value):
    with pytest.raises(UserError, match=f"{key}.* {value}"):
        tiny(name, **{key: value})
