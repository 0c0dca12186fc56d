"""Jobs on a real Dask scheduler with two workers, one of which is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest

from anomaly3d import prepare, score
from anomaly3d.errors import UserError
from anomaly3d.system.workers import Cluster, run_parallel, worker_count
from tests.conftest import TINY, refused
from tests.writers import small_head

pytest.importorskip("distributed")
SMALL = [text for text in TINY if text.startswith("preprocessing")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler with two worker processes."""
    place = tmp_path_factory.mktemp("dask")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    log = (place / "log").open("w")

    def start(what: str, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *arguments]
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)

    scheduler = start("scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard")
    address = None
    for _ in range(300):
        if address := re.search(r"Scheduler at:\s+(tcp://\S+)", (place / "log").read_text()):
            break
        time.sleep(0.1)
    assert address
    workers = [start("worker", address[1], "--nthreads", "1", "--no-dashboard", "--no-nanny") for _ in range(2)]
    yield address[1]
    for process in (*workers, scheduler):
        process.terminate()
        process.wait(20)


def die_once(path: str, number: int) -> int:
    """Kill this worker the first time that number 3 is asked for."""
    if number == 3 and not os.path.exists(path):
        open(path, "w").close()
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return number


def test_prepare_gives_on_a_cluster_what_it_gives_here(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for seed in range(3):
        nib.save(small_head(seed), tmp_path / "in" / f"{seed}.nii.gz")
    (tmp_path / "in" / "bad.nii").write_text("hello")
    common = ["dataset=folder", "dataset.root=in", *SMALL]
    assert prepare.main([*common, "data_dir=here", "workers=1"]) == 3
    assert prepare.main([*common, "data_dir=there", "workers=dask", f"scheduler={cluster}"]) == 3
    here, there = (sorted((tmp_path / place).glob("folder-*/*/image/*.gz")) for place in ("here", "there"))
    assert [path.name for path in here] == ["0.nii.gz", "1.nii.gz", "2.nii.gz"]
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]
    tables = [pd.read_csv(next((tmp_path / place).glob("folder-*/*/quality.csv"))) for place in ("here", "there")]
    pd.testing.assert_frame_equal(*tables)


def test_score_gives_on_a_cluster_what_it_gives_here(cluster, tiny_run, places, tmp_path):
    nib.save(small_head(4), tmp_path / "a.nii.gz")
    tables = []
    for name, more in (("here", ["workers=1"]), ("there", ["workers=dask", f"scheduler={cluster}"])):
        arguments = ["run=tiny", f"scans={tmp_path / 'a.nii.gz'}", f"out={tmp_path / name}", *more]
        assert score.main([*arguments, places[1], f"data_dir={tmp_path / name}-data"]) == 0
        tables.append(pd.read_csv(tmp_path / name / "scores.csv"))
    pd.testing.assert_frame_equal(*tables)
    assert len(tables[0]) == 1


def test_a_killed_worker_costs_only_its_job(cluster, tmp_path):
    jobs = [(str(tmp_path / "died"), number) for number in range(8)]
    assert sorted(run_parallel(die_once, jobs, Cluster(cluster), "numbers")) == list(range(8))
    assert (tmp_path / "died").exists()


def test_a_scheduler_that_does_not_answer_is_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("anomaly3d.system.dask.PATIENCE", 1)
    arguments = ["dataset=folder", f"dataset.scans={__file__}", f"data_dir={tmp_path}", "workers=dask"]
    assert prepare.main([*arguments, "scheduler=tcp://127.0.0.1:9"]) == 2
    refused(capsys, "no Dask scheduler answers at scheduler=tcp://127.0.0.1:9")
    with pytest.raises(UserError, match="for workers=dask"):
        worker_count(2, "tcp://x:1")
    with pytest.raises(UserError, match="or dask"):
        worker_count("many")
