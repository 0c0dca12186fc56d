"""What the commands share: configs, their mistakes, help; and the Makefile that calls them."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import anomaly3d
from anomaly3d import evaluate, score, train
from anomaly3d.arguments import completed
from anomaly3d.cli import Command, Done
from anomaly3d.system.progress import say
from tests.conftest import TINY, refused

ROOT = Path(__file__).parents[1]


def test_a_phase_without_its_plus_is_answered_by_one_sentence(places, capsys):
    assert train.main(["phase=gan", *places]) == 2
    refused(capsys, "+phase=")


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("++phase.stps=4", "phase.steps"),
        ("++phase.module.critic_step=4", "phase.module.critic_steps"),
        ("++detector.module.capa=4", "detector.module.kappa"),
        ("+memori_gb=3", "memory_gb"),
        ("++trainer.devises=2", "trainer.devices"),
        ("trainer.gradient_clp_val=1", "trainer.gradient_clip_val"),
        ("datset=folder", "dataset"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(places, capsys, key, near):
    assert train.main(["+phase=gan", "run=wrong", *places, *TINY, "trainer.fast_dev_run=true", key]) == 2
    refused(capsys, key.strip("+").split("=")[0], f"did you mean {near}?")


def test_a_key_of_another_choice_of_its_group_names_that(places, capsys):
    assert train.main(["dataset.root=scans", "+phase=gan", *places]) == 2
    refused(capsys, "unknown key dataset.root: it belongs to dataset=bids, dataset=center_tbi,", "dataset=folder,")


def test_an_unknown_key_is_refused_before_any_of_the_phases(places, capsys):
    assert train.main(["run=wrong", *places, *TINY, "trainer.fast_dev_run=true", "++phase.stps=4"]) == 2
    refused(capsys, "did you mean phase.steps?")


def test_a_key_that_a_class_takes_is_not_unknown(places):
    """``weight_decay`` stands in no file, but Adam has it; so has the Trainer ``benchmark``."""
    more = ["++phase.module.optimizer.weight_decay=0.01", "++trainer.benchmark=false", "trainer.fast_dev_run=true"]
    assert train.main(["+phase=gan", "run=open", *places, *TINY, "logger=none", *more]) == 0


def test_a_callback_of_lightning_is_added_by_its_target(places, capsys):
    mine = "+callbacks.timer={_target_: lightning.pytorch.callbacks.Timer, duration: '00:01:00:00'}"
    arguments = ["+phase=gan", "run=mine", *places, *TINY, "logger=none", "trainer.fast_dev_run=true"]
    assert train.main([*arguments, mine]) == 0
    assert train.main([*arguments, "+callbacks.evil={_target_: os.system, command: 'true'}"]) == 2
    refused(capsys, "os.system", "plugins")


def test_an_unknown_phase_is_answered_by_one_sentence(places, capsys):
    assert train.main(["+phase=gam", *places]) == 2
    refused(capsys, "phase/gam", "encoder", "finetune", "gan")


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("++phase.steps=5", "multiple"),
        ("model.resolution=40", "resolution"),
        ("model.channles=4", "channles"),
        ("dataset=nope", "nope"),
        ("preprocessing.crop=tight", "crop"),
        ("trainer.precison=16", "precison"),
        ("trainer.precision=12", "precision"),
        ("trainer.devices=three", "trainer"),
        ("model.generator_norm=instance", "instance"),
        ("model.spatial_dims=2", "spatial_dims"),
        ("++phase.steps_per_epoch=0", "at least 1"),
        ("workers=two", "workers"),
        ("++phase.module.optimizer.lr=fast", "lr"),
        ("++phase.monitor=gan/val_loss", "phase.monitor"),
    ],
)
def test_config_mistakes_name_the_key(places, capsys, override, word):
    arguments = ["+phase=gan", "run=wrong", *places, *TINY, override]
    assert train.main(arguments) == 2
    refused(capsys, word)


@pytest.mark.parametrize(
    ("command", "word", "key"),
    [
        (train, "overwrite=no", "overwrite"),
        (train, "logger.models=off", "logger.models"),
        (train, "dataset.twins=maybe", "dataset.twins"),
        (evaluate, "images=no", "images"),
        (evaluate, "by_age=on", "by_age"),
        (score, "dicom=no", "dicom"),
    ],
)
def test_what_is_neither_true_nor_false_is_refused(places, capsys, command, word, key):
    """Hydra reads no and off as texts, and a text is true: people's scans would go to W&B."""
    more = TINY if command is train else []
    assert command.main(["run=wrong", *places, *more, word, *(["scans=[]"] if command is score else [])]) == 2
    refused(capsys, f"{key} must be true or false, not '{word.split('=')[1]}'")


def test_an_untrained_run_names_the_remedy(places, capsys):
    assert evaluate.main(["run=nobody", *places]) == 2
    refused(capsys, "make demo", "run=")
    assert score.main(["run=nobody", "scans=[a.nii]", *places]) == 2
    refused(capsys, "make demo", "run=")


def test_a_run_may_be_named_by_a_number(places, capsys):
    assert evaluate.main(["run=2024", *places]) == 2
    refused(capsys, "2024", "make demo")


@pytest.mark.parametrize("wrong", ["run=nobody", "scans=[no.nii]", "root=/no/such/place", "bacth=3"])
def test_a_refused_command_has_not_even_imported_torch(places, wrong):
    """Which takes seconds: the sentence comes at once."""
    code = f"import sys, anomaly3d.score as s; c = s.main({[wrong, *places]}); print(c, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"], done.stderr


def test_help_and_version_are_of_this_program(capsys):
    assert train.main(["--version"]) == 0
    assert capsys.readouterr().out == f"anomaly3d {anomaly3d.__version__}\n"
    assert train.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("python -m anomaly3d.train KEY=VALUE")


def test_help_is_quick_to_import():
    code = (
        "import sys, anomaly3d.train; print([m for m in ('torch', 'lightning', 'monai', 'wandb') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def end_by(number):
    """The exit code of a command that gets a signal in the middle of its work."""

    def work(config):
        os.kill(os.getpid(), number)
        time.sleep(10)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell makes jobs in its background deaf to it
    try:
        return Command("evaluate", work).run([])
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_sentence_and_its_exit_code(capsys, number, code):
    assert end_by(number) == code
    assert capsys.readouterr().err == "interrupted: run the same command again to go on from where it stopped\n"


@pytest.mark.parametrize(
    ("job", "name"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "3"}, "5_3"),
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "1"}, None),  # the first process asks
    ],
)
def test_slurms_signal_asks_for_another_run(monkeypatch, tmp_path, capsys, job, name):
    asked = tmp_path / "asked"
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for key, value in job.items():
        monkeypatch.setenv(key, value)
    assert end_by(signal.SIGUSR1) == 128 + signal.SIGUSR1
    assert capsys.readouterr().err == "interrupted: SLURM runs this job again, which goes on from where it stopped\n"
    assert (asked.read_text() if asked.exists() else None) == (name and f"requeue {name}\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    end_by(signal.SIGUSR1)
    assert ("run the same command again" in capsys.readouterr().err) == (name is not None)


def test_the_makefile_runs_what_the_readme_says():
    text = (ROOT / "Makefile").read_text()
    assert re.findall(r"anomaly3d\.(\w+)", text) == ["prepare", "train", "evaluate", "score"]


@pytest.mark.parametrize("key", ["data_dir", "runs_dir", "out"])
def test_a_place_that_cannot_hold_results_is_refused_before_any_work(places, tmp_path, capsys, key):
    (tmp_path / "taken").write_text("a file")
    arguments = ["run=tiny", f"scans={tmp_path / 'taken'}", *places, f"{key}={tmp_path / 'taken' / 'below'}"]
    assert score.main(arguments) == 2
    refused(capsys, f"{key}=", "is a file, not a folder")


@pytest.mark.skipif(os.name != "posix" or os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_refused_before_any_work(places, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert train.main([*places, f"runs_dir={tmp_path / 'closed' / 'runs'}"]) == 2
    refused(capsys, "runs_dir=", "may not be written to")


@pytest.mark.parametrize(
    "value",
    ["Studie (2019)", "Müller", "x=1", "a,b", "it's", "007", "头部", "a {b}", "50%", "#1"],
)
def test_paths_need_no_quotes_but_the_shells(value):
    """What Hydra makes of a path is the path, as a key and in a list."""
    parser = OverridesParser.create()
    (text,) = completed("prepare", [f"dataset.root={value}"])
    assert parser.parse_override(text).value() == value
    if "," not in value:
        (text,) = completed("score", [f"scans=[{value},other.nii]"])
        assert parser.parse_override(text).value() == [value, "other.nii"]


def test_the_documented_skull_stripper_line_is_read_as_it_stands():
    page = ROOT / "docs" / "howto" / "own_study.md"
    (line,) = re.findall(r"`'(preprocessing\.mask_command=[^']*)'`", page.read_text())
    found = OverridesParser.create().parse_override(completed("prepare", [line])[0])
    assert found.value() == "my-stripper {input} {output}"


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 3 GiB"), RuntimeError("CUDA out of memory. Tried to allocate 20 MiB")]
)
def test_out_of_memory_is_a_sentence(error, capsys):
    """Of any command; training says more."""

    def fail(_):
        raise error

    assert Command("evaluate", fail).run(["run=any"]) == 2
    refused(capsys, "out of memory: a smaller batch=", str(error))


def test_a_name_that_the_encoding_of_standard_output_lacks_ends_nothing(tmp_path):
    """And one that the process could not read is refused, as its files would get another name."""
    place = tmp_path / "Größe 日本"
    call = [sys.executable, "-m", "anomaly3d.prepare", "run=ü", "dataset=folder", f"dataset.root={place}"]
    for env, words in (
        ({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}, "there is no such file or folder"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "set PYTHONUTF8=1"),
    ):
        done = subprocess.run(call, env={**os.environ, **env}, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert words in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_the_output_that_has_read_enough_gets_no_traceback(unbuffered):
    """``| head -1``: the pipe is closed before the help is written, line by line or at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "anomaly3d.prepare", "--help"]
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_letters_that_the_encoding_of_file_names_reads_otherwise_are_refused(monkeypatch, capsys):
    """In Latin-1 every byte is a letter, but torch would look for the file in UTF-8."""
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    assert Command("evaluate", lambda _: Done()).run(["run=Größe".encode().decode("latin-1")]) == 2
    refused(capsys, "iso8859-1: set PYTHONUTF8=1")
    assert Command("evaluate", lambda _: Done()).run(["run=size"]) == 0


def test_names_are_said_in_any_encoding(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert Command("evaluate", lambda _: say("日本") or Done()).run(["run=any"]) == 0
    sys.stdout.flush()
    assert written.getvalue() == b"\\u65e5\\u672c\n"
