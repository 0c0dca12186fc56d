"""The program as an installed package, far from any checkout."""

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


def installed(site, folder, *arguments, code=0):
    """Run the installed program in another folder; its output."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "anomaly3d", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_it_holds_every_config(site):
    there = {path.relative_to(site / "anomaly3d" / "conf") for path in (site / "anomaly3d" / "conf").rglob("*.yaml")}
    assert there == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}
    for package in ("anomaly3d", "hydra_plugins"):
        modules = {path.relative_to(site) for path in (site / package).rglob("*.py")}
        assert modules == {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}


def test_every_command_runs_from_another_folder(site, tiny_run, places, tmp_path):
    """On the tiny run, whose data are prepared: one process a command."""
    scan = sorted(tiny_run.parents[1].glob("data/raw/phantom-*/ct/subdural*"))[0]
    scans, run = [f"scans=[{scan}]", f"out={tmp_path}/out"], ["run=tiny", *places]
    assert anomaly3d.__version__ in installed(site, tmp_path, "--version")
    assert "train" in installed(site, tmp_path, code=2)
    for command in COMMANDS:
        assert installed(site, tmp_path, command, "--help").startswith(f"python -m anomaly3d.{command} KEY=VALUE")
    from tests.conftest import TINY

    cohort = [o for o in TINY if o.startswith(("dataset", "preprocessing"))]
    assert "12 accepted" in installed(site, tmp_path, "prepare", *places, *cohort)
    assert "has finished it" in installed(site, tmp_path, "train", "+phase=gan", *run, *TINY)
    assert "report:" in installed(site, tmp_path, "evaluate", *run, "logger=none")
    assert "anomaly score" in installed(site, tmp_path, "score", *run, *scans)
    assert "healthy scans of here" in installed(site, tmp_path, "calibrate", "site=here", *run, *scans)
    named = "detectors={a: [tiny], b: [tiny/pca]}"
    assert "written to" in installed(site, tmp_path, "compare", named, places[1], f"out={tmp_path}/c.json")
    many = installed(site, tmp_path, "train", "-m", "+phase=gan,encoder", *run, *TINY)  # Hydra finds our sweepers
    assert many.count("has finished it") == 2
    assert "Is the GAN healthy?" in installed(site, tmp_path, "dashboard", "dry_run=true")


def test_the_commit_is_the_programs_own_or_none(site, tmp_path):
    """An environment may lie in a repository of somebody's, whose commit is not ours."""
    assert git_commit()
    subprocess.run(["git", "init", "-q", str(site.parent)], check=True)
    assert git_commit(site / "anomaly3d") is None
    assert git_commit(tmp_path) is None
