import copy
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.gan import GANPhase

SGD = partial(torch.optim.SGD, lr=0.1)


def tiny(norm="batch", critic="none"):
    torch.manual_seed(0)
    return FAnoGAN(ModelConfig(4, 8, 16, norm, critic, norm, "tanh", 3))


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


@pytest.mark.parametrize(
    ("phase", "frozen"),
    [(EncoderPhase, ("generator", "critic")), (FinetunePhase, ("critic",)), (GANPhase, ("encoder",))],
)
def test_frozen_networks_keep_every_bit(phase, frozen):
    """Weights and buffers: a BatchNorm left in training mode would drift its running statistics."""
    detector = tiny(critic="batch")
    extra = dict(lambda_gp=10.0, critic_steps=1) if phase is GANPhase else {}
    module = phase(detector, SGD, **extra)
    before = {n: state(getattr(detector, n)) for n in ("generator", "critic", "encoder")}
    module.train()  # what Lightning does after each validation
    x = torch.rand(3, 1, 16, 16, 16) * 2 - 1
    if phase is GANPhase:
        fake = detector.generator(torch.randn(3, 8))
        (detector.critic(x).mean() - detector.critic(fake).mean()).backward()
    else:
        optimizer = module.configure_optimizers()["optimizer"]
        detector.distances(x, detector.reconstruct(x))["total"].mean().backward()
        optimizer.step()
    for name in ("generator", "critic", "encoder"):
        same = all(torch.equal(v, before[name][k]) for k, v in state(getattr(detector, name)).items())
        network = getattr(detector, name)
        if name in frozen:
            assert same
            assert not any(p.requires_grad for p in network.parameters())
            assert not network.training
        elif phase is not GANPhase:
            assert not same


def test_the_score_is_the_loss_of_training():
    detector = tiny("group").eval()
    x = torch.rand(3, 1, 16, 16, 16) * 2 - 1
    scores = detector.examine({"image": x}).scores
    losses = detector.distances(x, detector.reconstruct(x))
    for name in ("image", "feature", "total"):
        torch.testing.assert_close(scores[name], losses[name])
    torch.testing.assert_close(scores["total"], scores["image"] + scores["feature"])
    torch.testing.assert_close(
        scores["total"][1:2], detector.examine({"image": x[1:2]}).scores["total"], rtol=1e-4, atol=1e-6
    )


def test_a_saved_detector_scores_the_same(tmp_path):
    detector = tiny("group").eval()
    x = torch.rand(2, 1, 16, 16, 16)
    detector.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    assert torch.equal(again.examine({"image": x}).scores["total"], detector.examine({"image": x}).scores["total"])


def test_noise_depends_on_step_and_purpose_only():
    module = GANPhase(tiny(), SGD, 10.0, 1, seed=4)
    again = GANPhase(copy.deepcopy(tiny()), SGD, 10.0, 1, seed=4)
    torch.rand(5)
    assert torch.equal(module.latent(3, 7, 0), again.latent(3, 7, 0))
    assert not torch.equal(module.latent(3, 7, 0), module.latent(3, 8, 0))
    assert not torch.equal(module.latent(3, 7, 0), module.latent(3, 7, 1))


class LinearCritic(torch.nn.Module):
    """D(x) = <w, x>, whose penalty and gradients are known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.randn(16**3) / 20)

    def forward(self, x):
        return x.flatten(1) @ self.w


@pytest.fixture
def linear_gan(monkeypatch):
    detector = tiny("group")
    detector.critic = LinearCritic()
    module = GANPhase(detector, SGD, lambda_gp=10.0, critic_steps=3)
    logged = {}
    for name in ("toggle_optimizer", "untoggle_optimizer"):
        monkeypatch.setattr(module, name, lambda optimizer: None)
    monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    return module, logged


def test_a_critic_step_minimises_equation_2(linear_gan):
    module, logged = linear_gan
    real = torch.rand(5, 1, 16, 16, 16) * 2 - 1
    fake = module.detector.generator(module.latent(5, 0, 0)).detach()
    w = module.detector.critic.w
    before, norm = w.detach().clone(), w.detach().norm()
    module.critic_step(real, SGD([w]))
    difference = (fake.flatten(1) - real.flatten(1)).mean(0)
    torch.testing.assert_close(logged["gan/critic_loss"], before @ difference + 10 * (norm - 1) ** 2)
    gradient = difference + 10 * 2 * (norm - 1) * before / norm
    torch.testing.assert_close(w.detach(), before - 0.1 * gradient, rtol=1e-4, atol=1e-5)


def test_a_generator_step_raises_the_critics_value(linear_gan):
    module, logged = linear_gan
    optimizer = torch.optim.SGD(module.detector.generator.parameters(), lr=1e-3)
    z = module.latent(4, 0, 1)
    before = module.detector.critic(module.detector.generator(z)).mean().detach()
    module.generator_step(torch.zeros(4, 1, 16, 16, 16), optimizer)
    torch.testing.assert_close(logged["gan/generator_loss"], -before)
    assert module.detector.critic(module.detector.generator(z)).mean() > before


def test_the_generator_steps_after_every_third_critic_step(linear_gan, monkeypatch):
    module, _ = linear_gan
    steps = []
    monkeypatch.setattr(module, "optimizers", lambda: (None, None))
    monkeypatch.setattr(module, "lr_schedulers", lambda: None)
    monkeypatch.setattr(module, "critic_step", lambda *_: steps.append("critic"))
    monkeypatch.setattr(module, "generator_step", lambda *_: steps.append("generator"))
    for i in range(7):
        module.training_step({"image": torch.zeros(2, 1, 16, 16, 16)}, i)
    assert steps == (["critic"] * 3 + ["generator"]) * 2 + ["critic"]


def test_generator_keeps_running_statistics_while_it_is_finetuned():
    detector = tiny("batch")
    module = FinetunePhase(detector, SGD)
    module.train()
    assert not detector.generator.training
    assert all(p.requires_grad for p in detector.generator.parameters())
    assert detector.encoder.training


def validated(rank, folder, scans, port):
    """One process's validation of ``scans[rank]`` by a real trainer; the epoch's mean goes to a file."""
    import lightning as L

    class Loader(torch.utils.data.Dataset):
        def __len__(self):
            return len(scans[rank])

        def __getitem__(self, index):
            return torch.full((1, 16, 16, 16), scans[rank][index])

    class Probe(EncoderPhase):
        def validation_step(self, batch, batch_idx):
            self.log_mean("val_loss", batch.mean(), len(batch))

    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank)
    )
    os.environ["NODE_RANK"] = "0"
    torch.set_num_threads(1)
    more = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", use_distributed_sampler=False, **more)
    loader = torch.utils.data.DataLoader(Loader(), batch_size=2)
    (found,) = trainer.validate(Probe(tiny(), SGD, seed=0), loader, verbose=False)
    (Path(folder) / f"{rank}.txt").write_text(str(found["encoder/val_loss"]))
    torch.distributed.destroy_process_group()  # its threads would abort a process that ends before them


def test_validation_is_a_mean_over_scans_also_where_processes_have_unequal_shares(tmp_path):
    """5 scans in batches of 2: three on one process, two on the other."""
    scans = [[0.0, 0.1, 0.9], [0.2, 0.4]]
    arguments = str(tmp_path), scans, find_free_network_port()
    torch.multiprocessing.start_processes(validated, arguments, nprocs=2, start_method="spawn")
    for rank in range(2):
        assert float((tmp_path / f"{rank}.txt").read_text()) == pytest.approx(sum(map(sum, scans)) / 5)
