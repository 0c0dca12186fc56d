import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anomaly3d.errors import UserError
from anomaly3d.system.files import HOST, remove_leftovers, written_whole
from anomaly3d.system.workers import disk_error, run_in_threads, run_parallel

SLEEPERS = (
    "import time\nfrom anomaly3d.system.workers import run_parallel\n"
    "if __name__ == '__main__':\n    list(run_parallel(time.sleep, [(60,), (60,)], 2, 'sleep'))\n"
)


def test_every_job_is_done_once():
    assert sorted(run_parallel(pow, [(2, i) for i in range(5)], 2, "powers")) == [1, 2, 4, 8, 16]


def test_threads_keep_the_order_and_share_what_they_read():
    shared = []
    found = run_in_threads(lambda n: (shared.append(n), n**2)[1], [(n,) for n in range(20)], 3, "squares")
    assert list(found) == [n**2 for n in range(20)]
    assert sorted(shared) == list(range(20))
    assert list(run_in_threads(pow, [], 2, "nothing")) == []


def test_an_error_in_a_thread_ends_the_work():
    begun = []

    def work(n):
        begun.append(n)
        time.sleep(0.05)
        return 1 / (n - 1)

    with pytest.raises(ZeroDivisionError):
        list(run_in_threads(work, [(n,) for n in range(50)], 2, "divide"))
    assert len(begun) < 10


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc, which only Linux has")
def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, tmp_path / "sleepers.py"], env=environment) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        for _ in range(300):
            workers = [int(p) for p in children.read_text().split() if spawned(p)]
            if len(workers) == 2:
                break
            time.sleep(0.1)
        assert len(workers) == 2
        time.sleep(3)  # until they have begun
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not any(spawned(str(p)) for p in workers):
            break
        time.sleep(0.1)
    assert not [p for p in workers if spawned(str(p))]


def spawned(pid: str) -> bool:
    """Whether a process is a living worker."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / f".{dead.pid}@{HOST}.a.nii.gz").write_text("half")
    elsewhere = [tmp_path / "image" / f".{dead.pid}@another.{name}.nii.gz" for name in ("now", "long-ago")]
    for path in elsewhere:
        path.write_text("half")
    os.utime(elsewhere[1], (0, 0))
    with written_whole(tmp_path / "image" / "b.nii.gz") as beside:
        beside.write_text("whole")
        remove_leftovers(tmp_path)
        assert beside.exists()
    assert {p.name for p in (tmp_path / "image").iterdir()} == {"b.nii.gz", elsewhere[0].name}


def die(path, number):
    """Kill this worker at number 2, the first time only where there is a path."""
    if number == 2 and not (path and os.path.exists(path)):
        if path:
            open(path, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_costs_only_its_job_which_is_tried_again(tmp_path):
    jobs = [(str(tmp_path / "died"), number) for number in range(6)]
    assert sorted(run_parallel(die, jobs, 2, "numbers")) == list(range(6))


def test_a_job_that_kills_its_workers_is_lost_and_the_others_are_done():
    lost = []
    jobs = [("", number) for number in range(6)]
    found = run_parallel(die, jobs, 2, "numbers", lambda job, reason: lost.append((job, reason)) or -1)
    assert sorted(found) == [-1, 0, 1, 3, 4, 5]
    assert lost[0][0] == ("", 2)
    assert "killed twice" in lost[0][1]
    with pytest.raises(UserError, match="fewer workers"):
        list(run_parallel(die, jobs, 2, "numbers"))


def test_a_job_that_hangs_is_ended_and_the_others_are_done():
    found = run_parallel(time.sleep, [(0.0,), (600.0,), (0.1,)], 2, "sleep", lambda job, reason: reason, longest=6)
    assert sorted(map(str, found)) == ["None", "None", "it took longer than 6 s"]


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is full"), (errno.EROFS, "is read-only")]
)
def test_a_disk_that_takes_no_more_is_a_sentence(number, words):
    made = disk_error(OSError(number, "whatever", "some/file"))
    assert isinstance(made, UserError)
    assert f"the disk {words} while writing some/file: " in str(made)


def test_other_errors_of_files_stay_what_they_are():
    error = OSError(errno.EIO, "Input/output error", "some/file")
    assert disk_error(error) is error


def test_workers_that_die_before_they_begin_are_a_sentence(tmp_path):
    """Each of them imports the script that it works for."""
    script = tmp_path / "dying.py"
    script.write_text(
        "import os, signal, time\nfrom anomaly3d.errors import UserError\n"
        "from anomaly3d.system.workers import run_parallel\n"
        "if __name__ != '__main__':\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "try:\n    list(run_parallel(time.sleep, [(60,), (60,)], 2, 'sleep'))\n"
        "except UserError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert "sleep: every worker process was killed" in done.stdout, done.stderr
