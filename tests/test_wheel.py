"""The program as an installed package, far from any checkout."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import anomaly3d
from anomaly3d.__main__ import COMMANDS
from anomaly3d.runs.lineage import git_commit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the wheel's files only, as site-packages has them."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("anomaly3d", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, place / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / "source")
    source = str(place / "source")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(place), source]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place / "site")
    return place / "site"


ONE_AFTER_THE_OTHER = """
import importlib, json, sys
for command, *words in json.loads(sys.argv[1]):
    print("command:", command, flush=True)
    code = importlib.import_module(f"anomaly3d.{command}").main(words)
    assert code == 0, (command, code)
"""


def installed(site, folder, *arguments, code=0, how=("-m", "anomaly3d")):
    """Run the installed program in another folder; its output."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *how, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=folder, env=environment, **streams, timeout=200)
    assert done.returncode == code, done.stdout
    assert "Traceback" not in done.stdout
    return done.stdout


def test_it_holds_every_config(site):
    there = {path.relative_to(site / "anomaly3d" / "conf") for path in (site / "anomaly3d" / "conf").rglob("*.yaml")}
    assert there == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    for package in ("anomaly3d", "hydra_plugins"):
        modules = {path.relative_to(site) for path in (site / package).rglob("*.py")}
        assert modules == {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}


def test_every_command_runs_from_another_folder(site, tiny_run, places, tmp_path):
    """On the tiny run, whose data are prepared; in one process, because every new one imports for seconds."""
    scan = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    scans, run = [f"scans=[{scan}]", f"out={tmp_path}/out"], ["run=tiny", *places]
    assert anomaly3d.__version__ in installed(site, tmp_path, "--version")
    assert "train" in installed(site, tmp_path, code=2)
    for command in COMMANDS:
        assert installed(site, tmp_path, command, "--help").startswith(f"python -m anomaly3d.{command} KEY=VALUE")
    from tests.conftest import TINY

    cohort = [o for o in TINY if o.startswith(("dataset", "preprocessing"))]
    calls = {
        ("prepare", *places, *cohort): "12 accepted",
        (
            "train",
            "-m",
            "+phase=gan,encoder",
            *run,
            *TINY,
        ): "encoder: run tiny has finished it",  # Hydra finds our sweepers
        ("evaluate", *run, "logger=none"): "report:",
        ("score", *run, *scans): "anomaly score",
        ("calibrate", "site=here", *run, *scans): "healthy scans of here",
        ("compare", "detectors={a: [tiny], b: [tiny/pca]}", places[1], f"out={tmp_path}/c.json"): "written to",
        ("dashboard", "dry_run=true"): "Is the GAN healthy?",
    }
    told = installed(site, tmp_path, json.dumps(list(calls)), how=("-c", ONE_AFTER_THE_OTHER)).split("command:")[1:]
    assert len(told) == len(calls)
    for (command, *_), words, text in zip(calls, calls.values(), told, strict=True):
        assert words in text, (command, text)


def test_the_commit_is_the_programs_own_or_none(site, tmp_path):
    """An environment may lie in a repository of somebody's, whose commit is not ours."""
    assert git_commit()
    subprocess.run(["git", "init", "-q", str(site.parent)], check=True)
    assert git_commit(site / "anomaly3d") is None
    assert git_commit(tmp_path) is None
