"""Each phase's own steps by a real trainer, against the paper's equations written out for networks of a few weights."""

import copy
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import Parameter

from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.errors import UserError
from anomaly3d.phases.base import Predicting
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.fit import DRAWN, FitPhase
from anomaly3d.phases.gan import CRITIC, EPSILON, GENERATOR, SAMPLES, GANPhase
from tests.phases.toys import KAPPA, LATENT, MOVED_BY_GAN, RATE, SGD, loader, trained, trainer, volumes

NETWORKS = ("generator", "critic", "encoder")


def weights(detector):
    return {f"{n}.{k}": v.clone() for n in NETWORKS for k, v in getattr(detector, n).state_dict().items()}


def stepped(loss, parameters, rate):
    """Plain gradient descent."""
    gradients = torch.autograd.grad(loss, parameters)
    return [(p - rate * g).detach().requires_grad_() for p, g in zip(parameters, gradients, strict=True)]


def test_a_gan_phase_is_equations_2_and_3_in_turn(toy):
    """Three batches, a generator step after the second; each batch of another size."""
    w, a, b = (getattr(toy.get_submodule(n), k).detach().clone().requires_grad_() for n, k in MOVED_BY_GAN)
    phase = GANPhase(toy, SGD, 10.0, 2, partial(torch.optim.SGD, lr=0.5), seed=7)
    before, batches = weights(toy), [volumes(n, n) for n in (4, 3, 2)]
    losses, logged = trained(phase, batches)

    def d(x, a, b):
        return x.square() @ a / 2 + x @ b

    expected = []
    for step, x in enumerate(x.flatten(1) for x in batches):
        z = torch.randn(len(x), LATENT, generator=phase.noise(step, CRITIC))
        epsilon = torch.rand(len(x), generator=phase.noise(step, EPSILON))[:, None]
        fake = (z @ w).detach()
        between = epsilon * x + (1 - epsilon) * fake
        norm = (a * between + b).square().sum(1).sqrt()
        wasserstein = d(x, a, b).mean() - d(fake, a, b).mean()
        expected.append(-wasserstein + 10 * (norm - 1).square().mean())  # eq. 2
        last = {"wasserstein": wasserstein, "gradient_norm": norm.mean(), "penalty": (norm - 1).square().mean()}
        a, b = stepped(expected[-1], [a, b], RATE)
        if step == 1:
            z = torch.randn(len(x), LATENT, generator=phase.noise(step + 1, GENERATOR))
            expected.append(-d(z @ w, a, b).mean())  # eq. 3
            (w,) = stepped(expected[-1], [w], 0.5)
    assert losses == pytest.approx([float(loss) for loss in expected], rel=1e-4)
    for (network, name), value in zip(MOVED_BY_GAN, (w, a, b), strict=True):
        torch.testing.assert_close(getattr(toy.get_submodule(network), name), value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, before[f"{network}.{name}"])
    assert torch.equal(toy.encoder.u, before["encoder.u"])
    for name, value in {**last, "critic_loss": expected[-1], "generator_loss": expected[2]}.items():
        assert logged[f"gan/{name}"] == pytest.approx(float(value), rel=1e-3), name


def test_noise_is_normal_and_epsilon_uniform_and_one_a_volume(toy, monkeypatch):
    phase = GANPhase(toy, SGD, 10.0, 1, seed=2)
    z = torch.cat([phase.latent(500, step, CRITIC) for step in range(4)]).flatten()
    assert float(z.mean()) == pytest.approx(0, abs=0.05)
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    assert float((z.abs() > 1).float().mean()) == pytest.approx(0.317, abs=0.02)
    drawn = []
    loss = phase.critic_loss
    monkeypatch.setattr(phase, "critic_loss", lambda *of: drawn.append(of[2]) or loss(*of))
    trained(phase, [volumes(200), volumes(200)])
    for epsilon in drawn:
        assert epsilon.shape == (200,)
        assert np.ptp(epsilon.numpy()) > 0.9
        assert float(epsilon.mean()) == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("make", "moved", "loss"),
    [
        (EncoderPhase, ["encoder.u"], "both"),
        (EncoderPhase, ["encoder.u"], "feature"),
        (FinetunePhase, ["generator.w", "encoder.u"], "both"),
        (FinetunePhase, ["generator.w", "encoder.u"], "image"),
        (partial(FinetunePhase, trained=("generator",)), ["generator.w"], "image"),
        (partial(FinetunePhase, trained=("generator", "critic")), ["generator.w", "critic.a"], "both"),
        (partial(FinetunePhase, trained=NETWORKS), ["generator.w", "critic.a", "encoder.u"], "feature"),
    ],
)
def test_encoder_and_finetune_descend_on_equations_4_to_6(toy, make, moved, loss):
    """The rows of the paper's Table S2 are such combinations; D's last layer, here b, has no part in any."""
    phase, before = make(toy, SGD, seed=3, loss=loss), weights(toy)
    batches = [volumes(4, 5), volumes(2, 6)]
    losses, logged = trained(phase, batches)
    now = {name: value.clone().requires_grad_() for name, value in before.items()}
    expected = []
    for x in (x.flatten(1) for x in batches):
        again = x @ now["encoder.u"] @ now["generator.w"]
        image = (x - again).square().mean(1)  # eq. 4
        f, f_again = (now["critic.a"] * v.square() / 2 for v in (x, again))
        feature = (f - f_again).square().mean(1)  # eq. 5
        parts = {"image": image, "feature": feature, "both": image + KAPPA * feature}  # eq. 6
        expected.append(parts[loss].mean())
        now |= dict(zip(moved, stepped(expected[-1], [now[name] for name in moved], RATE), strict=True))
    assert losses == pytest.approx([float(loss) for loss in expected], rel=1e-4)
    for name, value in weights(toy).items():
        if name in moved:
            torch.testing.assert_close(value, now[name], rtol=1e-4, atol=1e-6)
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name
    for name, value in {"loss": expected[-1], "image": image.mean(), "feature": feature.mean()}.items():
        assert logged[f"{phase.name}/{name}"] == pytest.approx(float(value), rel=1e-4)


@pytest.mark.parametrize(
    ("trained", "loss", "words"),
    [
        (["encoder", "critic"], "image", "take it out of phase.module.trained"),
        (["discriminator"], "both", "at least one of generator, critic, encoder"),
        ([], "both", "at least one of"),
        (["encoder"], "l1", "image or feature or both, not l1"),
    ],
)
def test_what_cannot_be_trained_is_named(toy, trained, loss, words):
    with pytest.raises(UserError, match=words):
        FinetunePhase(toy, SGD, trained, loss)


def test_a_phase_is_validated_by_what_it_minimises_and_its_score_stays(toy):
    phase = FinetunePhase(toy, SGD, loss="image")
    healthy, pseudo = volumes(5, 8), 1.3 * volumes(5, 9)
    (logged,) = trainer().validate(phase, loader([{"image": healthy, "pseudo": pseudo}]), verbose=False)
    scores = [toy.examine({"image": x}).scores for x in (healthy, pseudo)]
    assert logged["finetune/val_loss"] == pytest.approx(float(scores[0]["image"].mean()), rel=1e-5)
    totals = torch.cat([found["total"].detach() for found in scores])
    assert logged["finetune/val_pseudo_auc"] == pytest.approx(roc_auc_score([0] * 5 + [1] * 5, totals))


def test_a_mirrored_detector_is_validated_by_what_scans_are_judged_by(toy):
    toy.mirrored = True
    batch = {"image": volumes(3, 1), "pseudo": volumes(3, 2)}
    module = EncoderPhase(toy, SGD)
    module.log = module.log_mean = lambda *args, **kwargs: None
    told = module.validation_step(batch, 0)
    for name, kind in (("healthy", "image"), ("pseudo", "pseudo")):
        torch.testing.assert_close(told[name], toy.examine({"image": batch[kind]}).scores["total"].detach())
    toy.mirrored = False
    assert not torch.allclose(told["healthy"], module.validation_step(batch, 0)["healthy"])


def test_validation_logs_the_loss_of_healthy_scans_and_the_auc_of_pasted_ones(toy):
    """Two batches of unequal size: means over scans, the AUC over all of them together."""
    phase = EncoderPhase(toy, SGD)
    healthy, pseudo = volumes(5, 8), 1.3 * volumes(5, 9)
    batches = [{"image": healthy[part], "pseudo": pseudo[part]} for part in (slice(0, 3), slice(3, 5))]
    (logged,) = trainer().validate(phase, loader(batches), verbose=False)
    scores = [toy.examine({"image": x}).scores["total"].detach() for x in (healthy, pseudo)]
    assert logged["encoder/val_loss"] == pytest.approx(float(scores[0].mean()), rel=1e-5)
    assert logged["encoder/val_pseudo_auc"] == pytest.approx(roc_auc_score([0] * 5 + [1] * 5, torch.cat(scores)))
    phase = GANPhase(toy, SGD, 10.0, 1)
    (logged,) = trainer().validate(phase, datamodule=Dealt(batches), verbose=False)
    of_fake = [toy.critic(toy.generator(phase.latent(3, i, SAMPLES)[:n])).mean() for i, n in enumerate((3, 2))]
    expected = toy.critic(healthy).mean() - (3 * of_fake[0] + 2 * of_fake[1]) / 5
    assert logged["gan/val_wasserstein"] == pytest.approx(float(expected), rel=1e-5)


class Dealt(L.LightningDataModule):
    """Validation batches of 3 volumes, all to this process."""

    batch = 3

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def place(self):
        return 0, 1

    def val_dataloader(self):
        return loader(self.batches)


class Shift(Detector):
    """Its one weight should be the mean of what it sees, with noise on top."""

    title = "shift"

    def __init__(self) -> None:
        super().__init__()
        self.mean = Parameter(torch.tensor(0.5))

    def examine(self, batch):
        return Findings({"total": (batch["image"] - self.mean).abs().flatten(1).mean(1)})

    def loss(self, batch):
        x = batch["image"]
        return {"loss": (x + torch.randn_like(x) - self.mean).square().mean()}


def test_fit_minimises_the_detectors_loss_and_draws_by_step():
    detector, batches = Shift(), [volumes(3, 2), volumes(2, 3)]
    phase = FitPhase(detector, SGD, seed=5)
    losses, logged = trained(phase, batches)
    mean, expected = 0.5, []
    for step, x in enumerate(batches):
        with torch.random.fork_rng():
            torch.manual_seed(phase.noise(step, DRAWN).initial_seed())
            seen = x + torch.randn(x.shape)
        expected.append(float((seen - mean).square().mean()))
        mean += RATE * 2 * float((seen - mean).mean())
    assert losses == pytest.approx(expected, rel=1e-5)
    assert logged["fit/loss"] == pytest.approx(expected[-1], rel=1e-5)
    assert float(detector.mean) == pytest.approx(mean, rel=1e-5)
    torch.manual_seed(11)
    undisturbed = torch.rand(3)
    torch.manual_seed(11)
    phase.losses({"image": batches[0]}, 0)
    assert torch.equal(torch.rand(3), undisturbed)  # what a method draws leaves the others' numbers alone


class AtOnce(Detector):
    """Keeps what it was given, and a mean."""

    title, learns_from, fewest = "at once", "labelled", 3

    def examine(self, batch):
        return Findings({"total": batch["image"].flatten(1).mean(1)})

    def fit(self, train, validation, brains):
        self.given = train, validation, brains
        self.register_buffer("mean", train.mean(0))


class Data(L.LightningDataModule):
    """The volumes of two splits."""

    learns_from = "labelled"

    def __init__(self, stacks):
        super().__init__()
        self.stacks = stacks
        self.prepared = type("Prepared", (), {"folder": "data/somewhere"})

    def volumes(self, split, kind="image"):
        return self.stacks[split] if kind == "image" else (self.stacks[split] > 0).byte()

    def train_dataloader(self):
        return loader([{"image": self.stacks["labelled"]}] * 2)


def test_a_method_that_learns_at_once_gets_its_splits_and_too_few_scans_are_a_sentence():
    detector, stacks = AtOnce(), {"labelled": volumes(3, 1), "validation": volumes(2, 2)}
    trainer().fit(FitPhase(detector), datamodule=Data(stacks))
    assert torch.equal(detector.given[0], stacks["labelled"])
    assert torch.equal(detector.given[1], stacks["validation"])
    assert torch.equal(detector.given[2], (stacks["labelled"] > 0).byte())
    stacks["labelled"] = volumes(2)
    with pytest.raises(UserError, match="at once needs at least 3 labelled scans, and data/somewhere holds 2"):
        trainer().fit(FitPhase(copy.deepcopy(detector)), datamodule=Data(stacks))


def test_what_is_learned_at_once_lies_where_the_phase_is():
    """Data lie on the CPU; of a phase on a GPU, here on no device at all, nothing may stay there."""
    phase = FitPhase(AtOnce()).to("meta")
    phase.trainer = SimpleNamespace(datamodule=Data({"labelled": volumes(3, 1), "validation": volumes(2, 2)}))
    phase.on_train_start()
    assert phase.detector.mean.device.type == "meta"


HALVED = {"_target_": "torch.optim.lr_scheduler.StepLR", "_partial_": True, "step_size": 1, "gamma": 0.5}


@pytest.mark.parametrize(
    ("make", "halvings"),
    [
        (partial(GANPhase, lambda_gp=10.0, critic_steps=2), [4, 4]),
        (EncoderPhase, [4]),
        (FinetunePhase, [4]),
    ],
)
def test_each_schedule_counts_batches(toy, make, halvings):
    fitting = trainer()
    fitting.fit(make(toy, SGD, scheduler=HALVED), loader({"image": volumes(2, n)} for n in range(4)))
    assert [o.param_groups[0]["lr"] for o in fitting.optimizers] == pytest.approx([RATE / 2**n for n in halvings])


@pytest.mark.parametrize(
    ("make", "inputs", "ratio"),
    [(EncoderPhase, 64, 1 / 4), (FinetunePhase, 16, 1 / 16), (EncoderPhase, None, 1), (EncoderPhase, 4096, 1)],
)
def test_the_encoders_last_layer_learns_as_if_it_had_fewer_inputs(make, inputs, ratio):
    """By Adam's first step, which moves each weight by its learning rate; there are 256 inputs."""
    detector = FAnoGAN(ModelConfig(2, LATENT, 16, "group", "none", "group", "tanh"), KAPPA)
    assert detector.encoder.head.in_features == 256
    before = weights(detector)
    adam = {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3}
    trained(make(detector, adam, head_inputs=inputs), [torch.rand(2, 1, 16, 16, 16) * 2 - 1])
    moved = {name: float((value - before[name]).abs().max()) for name, value in weights(detector).items()}
    assert moved["encoder.head.weight"] == pytest.approx(1e-3 * ratio, rel=0.01)
    assert moved["encoder.trunk.layers.0.weight"] == pytest.approx(1e-3, rel=0.01)
    assert (moved["generator.seed.weight"] > 0) == (make is FinetunePhase)


def test_optimizers_come_from_their_configs_and_mistakes_in_them_name_the_key(toy):
    critics, generators = (
        {"_target_": f"torch.optim.{kind}", "_partial_": True, "lr": lr} for kind, lr in (("SGD", 0.3), ("Adam", 0.2))
    )
    phase = GANPhase(toy, critics, 10.0, 1, generators, HALVED, seed=4)
    made = [one["optimizer"] for one in phase.configure_optimizers()]
    assert [(type(o).__name__, o.param_groups[0]["lr"]) for o in made] == [("SGD", 0.3), ("Adam", 0.2)]
    kept = {"optimizer": critics, "generator_optimizer": generators, "scheduler": HALVED, "seed": 4}
    kept |= {"lambda_gp": 10.0, "critic_steps": 1, "penalty": "exact", "penalty_every": 4}
    assert kept | {"detector": toy.config} == dict(phase.hparams)
    kept = {"optimizer": critics, "trained": ["encoder", "critic"], "loss": "feature", "head_inputs": 9, "seed": 3}
    made = EncoderPhase(toy, critics, ("encoder", "critic"), "feature", seed=3, head_inputs=9)
    assert kept | {"detector": toy.config} == dict(made.hparams)
    with pytest.raises(UserError, match=r"phase.module.optimizer=.*momentun"):
        EncoderPhase(toy, critics | {"momentun": 1}).configure_optimizers()
    with pytest.raises(UserError, match=r"phase.module.optimizer=.*Invalid learning rate"):
        EncoderPhase(toy, critics | {"lr": -1.0}).configure_optimizers()
    with pytest.raises(UserError, match=r"phase.module.scheduler.*gama"):
        EncoderPhase(toy, critics, scheduler=HALVED | {"gama": 1}).configure_optimizers()


def test_pictures_are_scans_beside_their_reconstructions_and_what_differs(toy):
    x = volumes(3)
    again = toy.reconstruct(x)
    for phase in (EncoderPhase(toy, SGD), FinetunePhase(toy, SGD), FitPhase(toy, SGD)):
        (rows,) = phase.pictures({"image": x}).values()
        assert list(phase.pictures({"image": x})) == ["reconstructions"]
        for i, (scan, reconstruction, difference) in enumerate(rows):
            assert torch.equal(scan, x[i, 0])
            torch.testing.assert_close(reconstruction, again[i, 0])
            torch.testing.assert_close(difference, (x - again)[i, 0].abs() - 1)
    phase = GANPhase(toy, SGD, 10.0, 1)
    samples = phase.pictures({"image": x})["samples"]
    expected = toy.generator(phase.latent(3, 0, SAMPLES))
    assert [len(row) for row in samples] == [1, 1, 1]
    torch.testing.assert_close(torch.stack([row[0] for row in samples]), expected[:, 0])
    assert FitPhase(Shift(), SGD).pictures({"image": x}) == {}


def test_validation_of_a_fitted_method_scores_scans_and_pasted_ones_apart():
    phase, x = FitPhase(Shift(), SGD), volumes(4)
    (logged,) = trainer().validate(phase, loader([{"image": x, "pseudo": x + 2}]), verbose=False)
    assert logged["fit/val_pseudo_auc"] == 1
    assert float(phase.losses({"image": x}, 0)["loss"]) == pytest.approx(logged["fit/val_loss"])


def test_findings_leave_as_numbers_that_keep_their_digits(toy):
    x = volumes(2)
    found = Predicting(toy).predict_step({"image": x, "scan_id": ["a", "b"]}, 0)
    assert {value.dtype for value in found.scores.values()} == {torch.float64}
    assert (found.reconstruction.dtype, found.reconstruction.requires_grad) == (torch.float32, False)
    torch.testing.assert_close(found.reconstruction, toy.reconstruct(x).detach())
    assert Predicting(Shift()).predict_step({"image": x, "scan_id": ["a", "b"]}, 0).reconstruction is None
