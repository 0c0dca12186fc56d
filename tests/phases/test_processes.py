"""A step on two processes is the step that one process takes with their batches together."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from monai.transforms import Compose, RandFlipd, RandShiftIntensityd

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.anovaegan import AnoVAEGAN
from anomaly3d.detectors.bayesian_autoencoder import BayesianAutoencoder
from anomaly3d.detectors.diffusion import Diffusion
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.detectors.fanogan_2d import FAnoGAN2D
from anomaly3d.detectors.supervised import Supervised
from anomaly3d.detectors.vae import VAE
from anomaly3d.networks.batch_norm import share_statistics
from anomaly3d.phases.alpha_gan import AlphaGANPhase
from anomaly3d.phases.contrast import ContrastPhase
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.finetune import FinetunePhase
from anomaly3d.phases.fit import FitPhase
from anomaly3d.phases.gan import GANPhase
from anomaly3d.phases.vaegan import VAEGANPhase
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.system.quiet import hush
from anomaly3d.training.callbacks.numbers import FILE, KeepNumbers
from tests.writers import noise_cohort

SGD = partial(torch.optim.SGD, lr=0.01)
SIDE, STEPS, VOLUMES = 16, 3, 4  # voxels; steps; volumes a step, over all processes
WGAN = dict(lambda_gp=10.0, critic_steps=1)
GAN = partial(GANPhase, **WGAN)


def fanogan(norm: str, **more: Any) -> FAnoGAN:
    """With a norm that mixes the volumes of a batch, or one that does not."""
    return FAnoGAN(ModelConfig(4, 8, SIDE, norm, "batch" if norm == "batch" else "none", norm, "tanh"), **more)


def fanogan_2d() -> FAnoGAN2D:
    return FAnoGAN2D(ModelConfig(4, 8, SIDE, "group", "none", "group", "tanh", 2), slices=2)


CASES = {
    "gan": (GAN, partial(fanogan, "group")),
    "encoder": (EncoderPhase, partial(fanogan, "group")),
    "finetune": (FinetunePhase, partial(fanogan, "group")),
    "contrast": (
        ContrastPhase,
        partial(fanogan, "group", contrast={"width": 8, "kinds": ["lump", "fissure", "patch"]}),
    ),
    "fit": (FitPhase, partial(Supervised, 8)),
    "fit, random codes": (FitPhase, partial(VAE, 8, 4, SIDE, 1.0, 0.1)),
    "fit, dropout": (FitPhase, partial(BayesianAutoencoder, 8, 4, SIDE, 0.2, 2, 0.1)),
    "fit, random times": (FitPhase, partial(Diffusion, [8, 8], steps=2)),
    "gan, codes too": (
        partial(AlphaGANPhase, **WGAN, lambda_image=10.0, code_width=6),
        partial(fanogan, "group"),
    ),
    "gan, codes too, approximate": (
        partial(AlphaGANPhase, **WGAN, lambda_image=10.0, code_width=6, penalty="approximate"),
        partial(fanogan, "group"),
    ),
    "gan of reconstructions": (partial(VAEGANPhase, **WGAN, adversarial=0.5), partial(AnoVAEGAN, 4, 2, 3, SIDE)),
    "gan, slices": (GAN, fanogan_2d),
    "gan, BatchNorm": (GAN, partial(fanogan, "batch")),
    "encoder, BatchNorm": (EncoderPhase, partial(fanogan, "batch")),
}


class Gradients(L.Callback):
    """Those that optimizers get, step by step."""

    def __init__(self) -> None:
        self.seen: list[list[torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.seen.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])


def train(case: str, prepared: PreparedCohort, folder: Path, world: int) -> dict[str, list[list[torch.Tensor]]]:
    """The gradients of a few steps, and the weights and running statistics after them."""
    hush()
    torch.manual_seed(0)
    phase, detector = CASES[case][0], CASES[case][1]()
    if world > 1:
        share_statistics(detector)
    augment = Compose([RandFlipd(["image"], prob=0.5, spatial_axis=0), RandShiftIntensityd(["image"], 0.3, prob=1)])
    reads = detector.taught_with
    data = HeadCTDataModule(prepared, VOLUMES // world, 1, seed=3, reads=reads, transforms=augment)
    gradients = Gradients()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        max_epochs=STEPS,
        callbacks=[gradients, KeepNumbers()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(phase(detector, SGD, seed=5), data)
    return {"gradients": gradients.seen, "state": [[v.clone() for v in detector.state_dict().values()]]}


def train_all(rank: int, prepared: PreparedCohort, folder: Path, port: int) -> None:
    """One of two processes; the first writes what came of it."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", NODE_RANK="0")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    for number, case in enumerate(CASES):
        found = train(case, prepared, folder / f"two{number}", 2)
        if rank == 0:
            torch.save(found, folder / f"two{number}.pt")
    torch.distributed.destroy_process_group()  # its threads would abort a process that ends before them


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """By case: what one process found and what two did, and their tables of numbers."""
    folder = tmp_path_factory.mktemp("processes")
    prepared = noise_cohort(folder, SIDE, train=7, validation=5)
    one = [train(case, prepared, folder / f"one{number}", 1) for number, case in enumerate(CASES)]
    arguments = prepared, folder, find_free_network_port()
    torch.multiprocessing.start_processes(train_all, arguments, nprocs=2, start_method="spawn")
    tables = [[pd.read_csv(folder / f"{name}{n}" / FILE) for name in ("one", "two")] for n in range(len(CASES))]
    return {c: (one[n], torch.load(folder / f"two{n}.pt"), *tables[n]) for n, c in enumerate(CASES)}


@pytest.mark.parametrize("case", CASES)
def test_gradients_weights_and_curves_are_those_of_one_process(both, case):
    """Curves too: of five validation scans one process sees 4 and 1 at a time, the two see 2 and 1, and 2."""
    one, two, curves, curves_of_two = both[case]
    near = 1e-4 if case.endswith("approximate") else 1e-5  # a difference of nearly equal numbers
    for what in ("gradients", "state"):
        assert len(one[what]) == len(two[what]) > 0
        for a, b in zip(one[what], two[what], strict=True):
            for left, right in zip(a, b, strict=True):
                torch.testing.assert_close(right, left, rtol=near, atol=near)
    assert len(one["gradients"]) == STEPS * (2 if case.startswith("gan") else 1)
    assert any(g.abs().max() > 1e-3 for g in one["gradients"][-1])
    if case.startswith(
        ("fit", "gan of", "contrast")
    ):  # their losses draw, at validation too, where scans are dealt one by one
        curves, curves_of_two = (table.drop(columns="val_loss") for table in (curves, curves_of_two))
    pd.testing.assert_frame_equal(curves_of_two, curves, rtol=1e-4)
