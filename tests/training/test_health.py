import json
import math

import pytest
import torch

from anomaly3d import train
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.phases.base import Alarm
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.gan import GANPhase, alikeness, nearest
from anomaly3d.training.callbacks.health import Health
from tests.conftest import TINY


def heads(count, seed):
    """Smooth volumes that differ from each other."""
    noise = torch.randn(count, 1, 32, 32, 32, generator=torch.Generator().manual_seed(seed))
    return torch.tanh(4 * torch.nn.functional.avg_pool3d(noise, 5, 1, 2))


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return FAnoGAN(ModelConfig(4, 8, 32, "group", "none", "group", "tanh", 3)).requires_grad_(False)


def gan(detector):
    return GANPhase(detector, torch.optim.Adam, 10.0, 1)


class Copies(torch.nn.Module):
    """A generator that gives volumes it has been handed."""

    def __init__(self, volumes):
        super().__init__()
        self.volumes = volumes

    def forward(self, z):
        return self.volumes[: len(z)]


ALARMS = {phase.name: phase.alarms for phase in (GANPhase, EncoderPhase, FinetunePhase)}


def alarms_of(numbers, phase):
    health = Health()
    words = []
    for epoch, row in enumerate(numbers, start=1):
        words += health.look(row, ALARMS[phase], epoch)
    return words


@pytest.fixture
def healthy_numbers():
    """What a run that goes well shows."""
    numbers = {"sameness": 0.02, "distance": 0.2, "copying": 1.1, "gradient_norm": 1.0, "wasserstein": 3.0}
    return {
        "gan": {**numbers, "overfitting": 0.2},
        "encoder": {"saturation": 0.1, "balance": 1.0, "val_loss": 0.1, "gap": 2.0},
    }


@pytest.mark.parametrize("phase", ["gan", "encoder", "finetune"])
def test_a_healthy_run_raises_no_alarm(healthy_numbers, phase):
    numbers = healthy_numbers["gan" if phase == "gan" else "encoder"]
    assert set(numbers) == {a.number for a in ALARMS[phase]}
    assert alarms_of([numbers] * 8, phase) == []


def test_copies_of_training_scans_are_noticed(detector, healthy_numbers):
    train_heads, other = heads(8, 1), heads(8, 2)
    detector.generator = Copies(train_heads + 0.01)
    found = gan(detector).sample_health(train_heads, other, alikeness(other[:6]))
    assert found["copying"] < 0.1
    assert "copied" in alarms_of([healthy_numbers["gan"] | found] * 4, "gan")[0]


def test_a_collapsed_generator_is_noticed(detector, healthy_numbers):
    one = heads(1, 3).expand(6, -1, -1, -1, -1)
    detector.generator = Copies(one)
    found = gan(detector).sample_health(heads(8, 1), heads(8, 2), alikeness(heads(8, 2)[:6]))
    assert found["sameness"] > 0.5
    assert any("collapse" in w for w in alarms_of([healthy_numbers["gan"] | found] * 4, "gan"))


def test_samples_far_from_heads_are_noticed(detector, healthy_numbers):
    detector.generator = Copies(-torch.ones(6, 1, 32, 32, 32))
    found = gan(detector).sample_health(heads(8, 1) + 0.5, heads(8, 2) + 0.5, 0.0)
    assert found["distance"] > 1
    assert any("far from the average real head" in w for w in alarms_of([healthy_numbers["gan"] | found] * 6, "gan"))


def test_other_healthy_heads_as_samples_are_fine(detector, healthy_numbers):
    detector.generator = Copies(heads(6, 5))
    found = gan(detector).sample_health(heads(8, 1), heads(8, 2), alikeness(heads(8, 2)[:6]))
    del found["overfitting"]  # the critic has not been trained
    assert alarms_of([healthy_numbers["gan"] | found] * 6, "gan") == []


def test_a_saturated_encoder_is_noticed(detector, healthy_numbers):
    phase = EncoderPhase(detector, torch.optim.Adam)
    assert phase.balance(heads(4, 1), heads(4, 2))["saturation"] < 0.1
    detector.encoder.head.weight.mul_(1000)
    found = phase.balance(heads(4, 1), heads(4, 2))
    assert found["saturation"] > 0.9
    assert any("tanh" in w for w in alarms_of([healthy_numbers["encoder"] | found] * 4, "encoder"))


def test_a_loss_that_is_one_distance_only_is_noticed(detector, healthy_numbers):
    detector.kappa = 1e6
    found = EncoderPhase(detector, torch.optim.Adam).balance(heads(4, 1), heads(4, 2))
    assert any("kappa" in w for w in alarms_of([healthy_numbers["encoder"] | found] * 4, "encoder"))


@pytest.mark.parametrize(
    ("phase", "number", "values", "word"),
    [
        ("gan", "gradient_norm", [4, 4, 4, 3, 3, 2.5, 3], "lambda_gp"),
        ("gan", "wasserstein", [1, 2, 3, 40], "at once"),
        ("gan", "overfitting", [0.1, 0.1, 0.1, 0.9], "too few scans"),
        ("gan", "wasserstein", [1, math.nan], "broken down"),
        ("encoder", "val_loss", [0.1, 0.1, 0.9], "at once"),
        ("finetune", "gap", [1, 1, 12], "too few scans"),
    ],
)
def test_each_alarm_says_what_is_wrong(healthy_numbers, phase, number, values, word):
    rows = [{**healthy_numbers["gan" if phase == "gan" else "encoder"], number: v} for v in values]
    words = alarms_of(rows, phase)
    assert len(words) == 1
    assert word in words[0]


def test_an_alarm_is_given_once_while_it_lasts_and_again_when_it_returns(healthy_numbers):
    good, bad = healthy_numbers["gan"], healthy_numbers["gan"] | {"gradient_norm": 9.0}
    start = [good] * 6
    assert len(alarms_of([*start, bad, bad, bad], "gan")) == 1
    assert len(alarms_of([*start, bad, good, bad], "gan")) == 2


def test_numbers_settle_before_they_alarm():
    alarm = Alarm("x", 0, 1, "bad", after=2)
    assert alarm.check([5.0]) is None
    assert alarm.check([5.0, 5.0]) is None
    assert alarm.check([5.0, 5.0, 5.0])


def test_distance_to_the_nearest(detector):
    volumes = heads(3, 0)
    assert nearest(volumes[:2], volumes).tolist() == [0, 0]
    assert alikeness(volumes[[0, 0]]) == pytest.approx(1, abs=1e-4)


def test_a_run_keeps_its_health(tiny_run):
    for phase in ("gan", "encoder", "finetune"):
        health = json.loads((tiny_run / "fanogan" / phase / "health.json").read_text())
        assert len(health["history"]) == 2
        assert set(health["history"][0]) == {a.number for a in ALARMS[phase]}


def test_a_broken_run_stops_at_its_alarm(tiny_run, places, capsys):
    """A learning rate of 10 throws the critic out within a few steps."""
    broken = [
        "+phase=gan",
        "run=broken",
        *places,
        *TINY,
        "logger=none",
        "++phase.steps=12",
        "callbacks.health.abort=true",
    ]
    assert train.main([*broken, "++phase.module.optimizer.lr=10"]) == 2
    error = capsys.readouterr().err
    assert "stopped at an alarm" in error
    assert "Traceback" not in error
