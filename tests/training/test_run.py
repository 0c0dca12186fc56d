"""Phases that are refused, and one that memory does not do for."""

import pytest
from lightning.pytorch.strategies import SingleDeviceStrategy

from anomaly3d import train
from anomaly3d.errors import UserError
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.training.run import train_phase
from tests.conftest import TINY, refused
from tests.training.test_resume import job, of_parents  # noqa: F401

CPU = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ..."
CUDA = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ..."


def room_for(monkeypatch, volumes, words):
    """Steps of more volumes run out of memory; returns the sizes that were tried."""
    tried, step = [], EncoderPhase.training_step

    def training_step(self, batch, batch_idx):
        tried.append(len(batch["image"]))
        if tried[-1] > volumes:
            raise RuntimeError(words)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(EncoderPhase, "training_step", training_step)
    return tried


@pytest.mark.parametrize(
    ("volumes", "words", "advice"), [(3, CPU, "phase.batch=2 fits"), (0, CUDA, "not even .*=1 fits")]
)
def test_out_of_memory_says_which_batch_fits(job, monkeypatch, volumes, words, advice):  # noqa: F811
    tried = room_for(monkeypatch, volumes, words)
    large = of_parents(
        job, "encoder", f"large{volumes}", "++phase.batch=8", "++phase.steps=2", "++phase.steps_per_epoch=2"
    )
    with pytest.raises(UserError, match=f"out of memory with phase.batch=8: {advice}"):
        train_phase(large)
    assert tried == ([8, 4, 2, 2] if volumes else [8, 4, 2, 1])
    assert not large.folder.learned()


def test_another_error_of_a_step_is_not_taken_for_a_lack_of_memory(job, monkeypatch):  # noqa: F811
    tried = room_for(monkeypatch, 0, "shapes do not fit")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train_phase(of_parents(job, "encoder", "other-error", "++phase.batch=8"))
    assert tried == [8]


def test_no_process_goes_on_before_the_model_is_written(job, monkeypatch):  # noqa: F811
    """Else the others look for the next phase's parent while the first one still writes it."""
    waiting = of_parents(job, "encoder", "waited", "++phase.steps=2", "++phase.steps_per_epoch=2")
    found = []

    def barrier(*_, **__):
        found.append(waiting.folder.model.exists() and (waiting.folder.read() or {}).get("finished"))

    monkeypatch.setattr(SingleDeviceStrategy, "barrier", barrier)
    train_phase(waiting)
    assert found[-1] is True


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("++phase.steps=1e1", "phase.steps=10.0: a whole number is wanted"),
        ("++phase.steps_per_epoch=abc", "phase.steps_per_epoch=abc: a whole number"),
        ("seed=1.5", "seed=1.5: a whole number"),
        ("seed=-1", "seed=-1: a whole number is wanted, at least 0"),
        ("memory_gb=lots", "memory_gb=lots: a number of gigabytes"),
        ("++phase.module.critic_steps=0", "critic_steps must be at least 1, not 0"),
        ("detector.module.kappa=abc", "could not convert string to float: 'abc'"),
        ("model.latent=0", r"latent \(0\) must be at least 1"),
        ("++detector.module.contrast.kinds=[]", r"contrast\.kinds must name what to teach"),
        ("detector=anogan detector.module.rate=-1", r"detector\.module\.rate \(-1\) above 0"),
        ("detector=anogan detector.module.start=encoder", "name it with parent="),
        ("++trainer.gradient_clip_val=0.5", "phase gan: .*gradient clipping is not supported"),
    ],
)
def test_impossible_values_are_sentences(job, typed, told):  # noqa: F811
    with pytest.raises(UserError, match=f"(?i){told.replace('phase gan', 'gan')}"):
        train_phase(job("gan", "impossible", *typed.split()))


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("detector=gmvae detector.module.halvings=6", "multiples of 64, and preprocessing.resolution=32 is none"),
        ("detector=gmvae detector.module.components=0", r"components \(0\) must be at least 1"),
        ("detector=vae detector.module.latent=0", "latent must be at least 1, not 0"),
        ("detector=diffusion detector.module.coarse=0", r"coarse \(0\) must be at least 1"),
        ("detector=diffusion detector.module.widths=[8,8,8,8,8,8]", "multiples of 64"),
    ],
)
def test_impossible_networks_are_sentences(job, typed, told):  # noqa: F811
    with pytest.raises(UserError, match=told):
        train_phase(job("fit", "impossible", *typed.split()))


def test_clipped_gradients_are_a_setting(job):  # noqa: F811
    """Of a phase that has been trained without, a model with them is another one."""
    train_phase(of_parents(job, "encoder", "clipped"))
    with pytest.raises(UserError, match=r"other values of trainer\.gradient_clip_val"):
        train_phase(of_parents(job, "encoder", "clipped", "++trainer.gradient_clip_val=0.1"))


def test_another_networks_weights_are_no_beginning(job):  # noqa: F811
    short = ["++phase.steps=1", "++phase.steps_per_epoch=1"]
    narrow = job("fit", "narrow", "detector.module.width=8", *short)
    train_phase(narrow)
    wide = job("fit", "wide", "detector.module.width=16", f"parent='{narrow.folder.path}'", *short)
    with pytest.raises(UserError, match=r"narrow.* holds other networks than detector=supervised has here: size mis"):
        train_phase(wide)


def test_a_phase_that_others_began_with_is_not_trained_on(tiny_run, places, capsys):
    model = tiny_run / "fanogan" / "gan" / "model.pt"
    before = model.read_bytes()
    assert train.main(["run=tiny", *places, *TINY, "++phase.steps=6"]) == 2
    refused(capsys, "phase gan of run tiny is finished, and encoder began with its model", "overwrite=true")
    assert model.read_bytes() == before


def test_keys_of_a_phase_are_a_mapping(tiny_run, places, capsys):
    assert train.main(["run=tiny", *places, *TINY, "++phases.gan=4"]) == 2
    refused(capsys, "phases.gan must hold keys, such as {steps: 4000}, not 4")
