"""Phases that are refused, and one that memory does not do for."""

import pytest

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


def test_a_phase_that_others_began_with_is_not_trained_on(tiny_run, places, capsys):
    model = tiny_run / "fanogan" / "gan" / "model.pt"
    before = model.read_bytes()
    assert train.main(["run=tiny", *places, *TINY, "++phase.steps=6"]) == 2
    refused(capsys, "phase gan of run tiny is finished, and encoder began with its model", "overwrite=true")
    assert model.read_bytes() == before


def test_keys_of_a_phase_are_a_mapping(tiny_run, places, capsys):
    assert train.main(["run=tiny", *places, *TINY, "++phases.gan=4"]) == 2
    refused(capsys, "phases.gan must hold keys, such as {steps: 4000}, not 4")
