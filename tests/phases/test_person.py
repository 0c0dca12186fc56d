"""Phases whose networks are told age and sex: each network, at each step, is told who the very scans show."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import Module, Parameter
from torch.utils.data import DataLoader

from anomaly3d.data.people import people
from anomaly3d.detectors import fanogan
from anomaly3d.detectors.alpha_fanogan import AlphaFAnoGAN
from anomaly3d.detectors.anogan import AnoGAN
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.detectors.fanogan_2d import FAnoGAN2D
from anomaly3d.detectors.losses import critic_losses
from anomaly3d.errors import UserError
from anomaly3d.networks.person import FiLM
from anomaly3d.phases.alpha_gan import AlphaGANPhase
from anomaly3d.phases.contrast import ContrastPhase
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.gan import CRITIC, GENERATOR, SAMPLES, GANPhase
from tests.phases.test_wiring import Dealt
from tests.phases.toys import SGD, SHAPE, trainer, volumes

LATENT, KAPPA = 3, 0.25
STILL = partial(torch.optim.SGD, lr=0.0)
AGES, SEXES = torch.tensor([75.0, float("nan"), 30.0]), ["F", "M", ""]


class Generator(Module):
    """G(z, p) = z W + p V."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = Parameter(torch.randn(LATENT, 24) / 3), Parameter(torch.randn(4, 24) / 3)

    def forward(self, z, person):
        return (z @ self.w + person @ self.v).unflatten(1, SHAPE)


class Critic(Module):
    """f(x, p) = (1 + <c, p>) x^2 / 2 at each voxel, D(x, p) its sum."""

    def __init__(self) -> None:
        super().__init__()
        self.c = Parameter(torch.randn(4) / 2)

    def features(self, x, halvings, person):
        return (1 + person @ self.c)[:, None] * x.flatten(1).square() / 2

    def forward(self, x, person):
        return self.features(x, None, person).sum(1)


class Encoder(Module):
    """E(x, p) = x U + p T."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.t = Parameter(torch.randn(24, LATENT) / 5), Parameter(torch.randn(4, LATENT) / 3)

    def forward(self, x, person):
        return x.flatten(1) @ self.u + person @ self.t


@pytest.fixture(params=[0.0, 0.5])
def toy(request, monkeypatch):
    """Told networks, of which all or about half of the scans are told."""
    monkeypatch.setattr(fanogan, "UNTOLD", request.param)
    torch.manual_seed(0)
    detector = AlphaFAnoGAN(ModelConfig(1, LATENT, 8, "none", "none", "none", "linear", person="film"), KAPPA)
    detector.generator, detector.critic, detector.encoder = Generator(), Critic(), Encoder()
    return detector


def batch(seed=1):
    return {"image": volumes(3, seed), "age": AGES, "sex": SEXES}


def told(phase, step):
    """Who is told in a training step: of some scans nothing."""
    drawn = torch.rand(3, generator=phase.noise(step, 6)) >= fanogan.UNTOLD
    return people(batch()) * drawn[:, None]


def logged(phase, *batches):
    fitting = trainer()
    fitting.fit(phase, DataLoader(list(batches), batch_size=None))
    return {name: float(value) for name, value in fitting.callback_metrics.items()}


def test_phase_1_tells_critic_and_generator(toy):
    phase = GANPhase(toy, STILL, 10.0, 1)
    x, person, epsilon = batch()["image"], told(phase, 0), phase.epsilon(3)[:, None]
    fake = toy.generator(phase.latent(3, 0, CRITIC), person)
    found = logged(phase, batch())
    between = epsilon * x.flatten(1) + (1 - epsilon) * fake.flatten(1)
    norm = ((1 + person @ toy.critic.c)[:, None] * between).norm(dim=1)
    phase.batches_seen = 1
    drawn = toy.generator(phase.latent(3, 1, GENERATOR), person)
    of_real, of_fake, of_drawn = (toy.critic(v, person).mean() for v in (x, fake, drawn))
    assert found["gan/critic_loss"] == pytest.approx(
        float(of_fake - of_real + 10 * (norm - 1).square().mean()), rel=1e-5
    )
    assert found["gan/generator_loss"] == pytest.approx(float(-of_drawn), rel=1e-5)


def test_kwons_phase_1_tells_all_three(toy):
    phase = AlphaGANPhase(toy, STILL, 10.0, 1, lambda_image=10.0, code_width=6)
    x, person, epsilon = batch()["image"], told(phase, 0), phase.epsilon(3, 2)
    codes = toy.encoder(x, person)
    again, made = toy.generator(codes, person), toy.generator(phase.latent(3, 0, CRITIC), person)
    halves = [
        critic_losses(toy.critic, x, fake, e, 10.0, person)["critic_loss"]
        for fake, e in ((again, epsilon[:3]), (made, epsilon[3:]))
    ]
    found = logged(phase, batch())
    assert found["alpha_gan/critic_loss"] - found["alpha_gan/code_loss"] == pytest.approx(
        float(sum(halves) / 2), rel=1e-4
    )
    drawn = toy.generator(phase.latent(3, 1, GENERATOR), person)
    words = sum(toy.critic(v, person).mean() for v in (again, drawn)) + phase.code_critic(codes).mean()
    expected = 10 * (x - again).abs().mean() - words
    assert found["alpha_gan/generator_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("kind", [EncoderPhase, FinetunePhase])
def test_phases_2_and_3_tell_all_three(toy, kind):
    phase, x = kind(toy, SGD), batch()["image"]
    person = told(phase, 0)
    again = toy.generator(toy.encoder(x, person), person)
    image = (x - again).square().flatten(1).mean(1)
    feature = ((1 + person @ toy.critic.c)[:, None] / 2 * (x.square() - again.square()).flatten(1)).square().mean(1)
    found = logged(phase, batch())
    assert found[f"{phase.name}/image"] == pytest.approx(float(image.mean()), rel=1e-5)
    assert found[f"{phase.name}/feature"] == pytest.approx(float(feature.mean()), rel=1e-5)


def test_validation_and_scores_tell_all_that_is_known(toy):
    x, pseudo, person = batch()["image"], 1.3 * volumes(3, 5), people(batch())
    losses = {}
    for name, v in (("image", x), ("pseudo", pseudo)):
        again = toy.generator(toy.encoder(v, person), person)
        losses[name] = toy.distances(v, again, person)
        found = toy.examine({**batch(), "image": v})
        torch.testing.assert_close(found.reconstruction, again)
        torch.testing.assert_close(found.scores["total"], losses[name]["total"])
        latent = (toy.encoder(v, person) - toy.encoder(again, person)).square().mean(1)
        torch.testing.assert_close(found.scores["latent"], latent)
    batches = DataLoader([{**batch(), "pseudo": pseudo}], batch_size=None)
    (seen,) = trainer().validate(EncoderPhase(toy, SGD), batches, verbose=False)
    assert seen["encoder/val_loss"] == pytest.approx(float(losses["image"]["total"].mean()), rel=1e-5)
    phase = GANPhase(toy, SGD, 10.0, 1)
    (seen,) = trainer().validate(phase, datamodule=Dealt([batch()]), verbose=False)
    fake = toy.generator(phase.latent(3, 0, SAMPLES), person)
    expected = toy.critic(x, person).mean() - toy.critic(fake, person).mean()
    assert seen["gan/val_wasserstein"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("kind", [FAnoGAN, FAnoGAN2D, AnoGAN])
@pytest.mark.parametrize("way", ["concat", "film"])
def test_real_networks_score_by_age_and_sex_where_they_are_known(kind, way):
    torch.manual_seed(0)
    more = {"steps": 2, "start": "encoder"} if kind is AnoGAN else {}
    detector = kind(ModelConfig(4, 8, 16, "group", "none", "group", "tanh", kind.spatial_dims, way), **more).eval()
    for module in detector.modules():
        if isinstance(module, FiLM):
            torch.nn.init.normal_(module.map.weight)
    x = torch.rand(3, 1, 16, 16, 16) * 2 - 1
    unknown = {"image": x, "age": torch.full((3,), float("nan")), "sex": ["", "", ""]}
    by = {
        "nothing": detector.examine({"image": x}),
        "unknown": detector.examine(unknown),
        "age": detector.examine({**unknown, "age": torch.tensor([80.0, float("nan"), 20])}),
        "sex": detector.examine({**unknown, "sex": ["F", "", "M"]}),
    }
    totals = {name: found.scores["total"].detach() for name, found in by.items()}
    torch.testing.assert_close(totals["unknown"], totals["nothing"])
    for name in ("age", "sex"):
        differs = (totals[name] - totals["unknown"]).abs() > 1e-6
        assert differs.tolist() == [True, False, True]


def test_networks_that_are_not_told_take_a_batch_as_before_and_phase_4_refuses_told_ones():
    model = ModelConfig(4, 8, 16, "group", "none", "group", "tanh")
    assert FAnoGAN(model).person(batch()) == ()
    told = FAnoGAN(replace(model, person="film"), contrast={"width": 8, "kinds": ["lump"]})
    with pytest.raises(UserError, match=r"model\.person=none"):
        ContrastPhase(told, SGD)
    with pytest.raises(UserError, match="person must be 'none', 'concat' or 'film'"):
        FAnoGAN(replace(model, person="maps"))
