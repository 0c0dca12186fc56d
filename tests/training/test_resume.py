"""A phase that ended anywhere goes on from its last checkpoint, and ends as an undisturbed one, bit for bit."""

import builtins
import errno
import io
import itertools
import os
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from anomaly3d.detectors.base import Detector
from anomaly3d.phases.base import Phase
from anomaly3d.training.job import Job
from anomaly3d.training.run import train_phase
from experiments.reliability.kill import differences, job_of, processes
from tests.writers import noise_cohort

TINY = [
    "preprocessing.resolution=32",
    "model.channels=2",
    "model.latent=8",
    "++phase.batch=2",
    "trainer.precision=32-true",
    "logger=none",
]
SIX = ["++phase.steps=6", "++phase.steps_per_epoch=2"]
EARLY = ["callbacks=early_stopping", "callbacks.stop.patience=1", "callbacks.stop.min_delta=100"]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What makes a phase's job in a run's folder."""
    folder = tmp_path_factory.mktemp("resume")
    prepared = noise_cohort(folder, 32, train=4, validation=2, labelled=4)

    def make(phase: str, run: str, *overrides: str) -> Job:
        made = job_of(phase, run, prepared, *TINY, *overrides)
        return replace(made, run=folder / run)

    for phase in ("gan", "encoder"):  # parents
        train_phase(make(phase, "parents", "++phase.steps=2", "++phase.steps_per_epoch=2"))
    return make


def of_parents(make, phase, run, *overrides):
    """A job that begins with the tiny parents, where its phase has one."""
    before = {"encoder": "gan", "finetune": "encoder"}.get(phase)
    parents = make("gan", "parents").run / "fanogan"
    return make(phase, run, *overrides, *([f"parent='{parents / before}'"] if before else []))


def train_and_die(job: Job, batches: int) -> None:
    """SIGKILL after so many batches, in a process of its own."""
    torch.set_num_threads(1)
    count = itertools.count()

    def die(*_):
        if next(count) == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    Phase.on_train_batch_start = die
    train_phase(job)


@pytest.mark.parametrize(
    ("phase", "batches", "more"),
    [
        ("gan", 5, []),
        ("encoder", 1, []),  # before the first checkpoint
        ("finetune", 3, ["callbacks=ema", "callbacks.average.decay=0.5"]),
        ("fit", 3, []),
    ],
)
def test_a_phase_killed_in_the_middle_of_an_epoch_ends_as_an_undisturbed_one(job, phase, batches, more):
    calm, killed = (of_parents(job, phase, run, *SIX, *more) for run in ("calm", "killed"))
    train_phase(calm)
    process = processes.Process(target=train_and_die, args=(killed, batches))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert killed.folder.last_checkpoint.exists() == (batches > 2)
    train_phase(killed)
    assert killed.folder.finished()
    assert differences(calm.folder.path, killed.folder.path) == []


def test_the_comparison_sees_a_difference(job):
    """In weights, in a table, and a file too many."""
    two = ["++phase.steps=2", "++phase.steps_per_epoch=2"]
    one, other = (of_parents(job, "encoder", run, *two) for run in ("one", "other"))
    for each in (one, other):
        train_phase(each)
    assert differences(one.folder.path, other.folder.path) == []
    checkpoint = torch.load(other.folder.last_checkpoint, weights_only=True)
    checkpoint["state_dict"]["detector.encoder.head.bias"][3] += 1e-7
    torch.save(checkpoint, other.folder.last_checkpoint)
    (other.folder.path / "training.csv").write_text("step\n")
    (other.folder.path / ".123.model.pt").touch()
    found = differences(one.folder.path, other.folder.path)
    assert [text.split(" ")[0] for text in found] == [".123.model.pt", "checkpoints/last.ckpt:", "training.csv:"]


class FullDisk:
    """The ``n``-th file that is opened to be written, or put in its place, fails; what was opened is left cut."""

    def __init__(self, n: int, patch: pytest.MonkeyPatch) -> None:
        self.left, self.opened, self.replaced = n, builtins.open, os.replace
        for module in (builtins, io):
            patch.setattr(module, "open", self.open)
        patch.setattr(os, "replace", self.replace)

    def fail(self) -> bool:
        self.left -= 1
        return self.left == 0

    def open(self, file, mode="r", *args, **kwargs):
        if isinstance(file, int) or not set(mode) & set("wax+") or not self.fail():
            return self.opened(file, mode, *args, **kwargs)
        with self.opened(file, "wb") as cut:
            cut.write(b"cut")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    def replace(self, *paths):
        if self.fail():
            raise OSError(errno.ENOSPC, "No space left on device", str(paths[1]))
        self.replaced(*paths)


def test_whichever_write_fails_the_phase_goes_on(job, monkeypatch):
    """Every write of a phase of two epochs in its turn."""
    two = ["++phase.steps=2", "++phase.steps_per_epoch=1"]
    calm = of_parents(job, "encoder", "whole", *two)
    train_phase(calm)
    for n in itertools.count(1):
        broken = of_parents(job, "encoder", f"full{n}", *two)
        with monkeypatch.context() as patch:
            disk = FullDisk(n, patch)
            with suppress(OSError):
                train_phase(broken)
        if disk.left > 0:
            break
        train_phase(broken)
        assert broken.folder.finished(), n
        assert differences(calm.folder.path, broken.folder.path) == [], n
    assert n > 15


def test_averaged_weights_are_not_what_training_goes_on_from(job):
    """After a resumed step the raw weights are those of an undisturbed run, and the averages too."""
    ema = ["callbacks=ema", "callbacks.average.decay=0.9", "++phase.steps_per_epoch=1"]
    halves, whole = (of_parents(job, "encoder", run, *ema, "++phase.steps=4") for run in ("halves", "together"))
    train_phase(of_parents(job, "encoder", "halves", *ema, "++phase.steps=2"))
    train_phase(halves)
    train_phase(whole)
    assert differences(whole.folder.path, halves.folder.path) == []
    last = torch.load(halves.folder.last_checkpoint, weights_only=True)
    name = "detector.encoder.head.weight"
    assert not torch.equal(last["current_model_state"][name], last["state_dict"][name])


@pytest.mark.parametrize(
    ("phase", "more"),
    [
        ("gan", ["callbacks=ema", "callbacks.average.decay=0.5", "++phase.steps=2"]),
        ("encoder", [*EARLY, "++phase.steps=8"]),
    ],
)
def test_a_phase_that_ended_before_its_model_was_written_only_writes_it(job, monkeypatch, phase, more):
    """The averages, or what was the best when it stopped early."""
    calm, killed = (of_parents(job, phase, run, *more, "++phase.steps_per_epoch=1") for run in ("in time", "late"))
    train_phase(calm)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_phase(killed)
    train_phase(killed)
    assert differences(calm.folder.path, killed.folder.path) == []
