"""What a user sees when disk, memory, network, a file or a process fails, what is lost, and whether it goes on after.

``python -m experiments.reliability.failures [NAME ...]`` makes each failure with real commands on a few phantoms and
writes ``failures.json``. Disks that fill up take root: they are mounted where nobody else sees them.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from anomaly3d.system.progress import say
from experiments.reliability.watched import (
    CALM,
    PHASE,
    PREPARE,
    TRAIN,
    WORK,
    Ended,
    Row,
    calm,
    compared,
    copy,
    digests,
    ended,
    half_written,
    lost,
    markdown,
    other,
    places,
    prepared_in,
    prepared_some,
    result,
    row,
    run,
    shown,
    start,
    wait_for,
)

HERE = Path(__file__).parent
MEMORY = 4 << 30  # bytes of address space
KEY = "0123456789abcdef" * 2 + "01234567"
NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS of unshare(2)


@contextmanager
def disk(name: str, megabytes: float) -> Iterator[Path]:
    """A small disk."""
    place = WORK / name
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=False)


def remount(place: Path, option: str, check: bool = True) -> bool:
    """Change a disk."""
    done = subprocess.run(["mount", "-o", f"remount,{option}", place], check=check, capture_output=True)
    return done.returncode == 0


def full_disk_prepare() -> Iterator[Row]:
    """Room for the template and some of the scans."""
    with disk("full-prepare", 6) as place:
        words = [*PREPARE, f"data_dir={place / 'data'}"]
        failed = run("prepare", *words)
        before, half = digests(place), half_written(place)
        remount(place, "size=64m")
        again = run("prepare", *words)
        yield row(
            "full disk, prepare",
            "a disk of 6 MB for data_dir",
            failed,
            lost({k: v for k, v in before.items() if k.endswith(".gz")}, place),
            half,
            result(again, other(prepared_in(place / "data"))),
        )


def full_disk_train() -> Iterator[Row]:
    """Room for a checkpoint and a half."""
    size = (CALM / "runs/demo" / PHASE / "checkpoints/last.ckpt").stat().st_size / 2**20
    for share in (0.5, 1.5, 2.5):
        with disk(f"full-train-{share}", size * share) as place:
            words = [*TRAIN, *places(CALM / "data", place)]
            failed = run("train", *words)
            half = half_written(place)
            remount(place, "size=64m")
            again = run("train", *words)
            yield row(
                "full disk, train", f"a disk of {share} checkpoints", failed, 0, half, result(again, compared(place))
            )


def read_only() -> Iterator[Row]:
    """Before the command, and while scans are prepared."""
    with disk("read-only", 64) as place:
        remount(place, "ro")
        words = [*TRAIN, *places(CALM / "data", place)]
        failed = run("train", *words)
        remount(place, "rw")
        again = run("train", *words)
        yield row("read-only disk, train", "mounted so", failed, 0, half_written(place), result(again, compared(place)))
    with disk("turns-read-only", 64) as place:
        words = [*PREPARE, f"data_dir={place / 'data'}"]
        begun, process = time.monotonic(), start("prepare", *words)
        wait_for(process, partial(prepared_some, place))
        wait_for(process, lambda: remount(place, "ro", check=False))  # refused while a file is being written
        failed = ended(process, begun)
        before, half = digests(place), half_written(place)
        remount(place, "rw")
        again = run("prepare", *words)
        yield row(
            "read-only disk, prepare",
            "remounted so after two scans",
            failed,
            lost({k: v for k, v in before.items() if k.endswith(".gz")}, place),
            half,
            result(again, other(prepared_in(place / "data"))),
        )


def not_a_number() -> Iterator[Row]:
    """A learning rate that jumps after an epoch."""
    data, runs = copy("nan")
    jump = ["_target_=torch.optim.lr_scheduler.StepLR", "_partial_=true", "step_size=3", "gamma=1.0e+30"]
    jumping = ["~detector.fit.scheduler.T_max", *(f"++detector.fit.scheduler.{word}" for word in jump)]
    failed = run("train", *TRAIN, *places(data, runs), *jumping)
    model = (runs / "demo" / PHASE / "model.pt").exists()
    half = half_written(runs)
    again = run("train", *TRAIN, *places(data, runs), "overwrite=true")
    yield row(
        "NaN loss",
        "learning rate x 1e30 after step 3" + (", model.pt WRITTEN" if model else ""),
        failed,
        0,
        half,
        result(again, [d for d in compared(runs) if "lineage" not in d]),
    )


def out_of_memory() -> Iterator[Row]:
    """An address space that the batch does not fit into."""
    data, runs = copy("memory")
    words = [*TRAIN, *places(data, runs)]
    failed = run("train", *words, "++phase.batch=4096", memory=MEMORY)
    half = half_written(runs)
    fits = failed.sentence.partition(" fits")[0].rpartition("phase.batch=")[2]
    again = run("train", *words, f"++phase.batch={fits or 1}", memory=MEMORY)
    yield row(
        "out of memory, train",
        "phase.batch=4096 under RLIMIT_AS of 4 GiB",
        failed,
        0,
        half,
        f"phase.batch={fits or 1}: {'finished' if again.code == 0 else again.sentence}",
    )


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Processes of a pool."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(line.split()[0]) for line in found.stdout.splitlines() if "spawn_main" in line]


def dead_worker() -> Iterator[Row]:
    """One worker of the pool at random, then all that there are, again and again."""
    for name, kill_all in (("one", False), ("all", True)):
        place = WORK / f"worker-{name}"
        begun, process = time.monotonic(), start("prepare", *PREPARE, f"data_dir={place / 'data'}")
        wait_for(process, partial(prepared_some, place))
        kills = 0
        while process.poll() is None and (kill_all or not kills):
            for pid in workers_of(process)[: None if kill_all else 1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
            time.sleep(0.5)
        failed = ended(process, begun)
        half = [path for path in half_written(place) if failed.code]
        again = run("prepare", *PREPARE, f"data_dir={place / 'data'}")
        yield row(
            "dead worker, prepare",
            f"SIGKILL to {'every worker, twice a second' if kill_all else 'one of two workers'} ({kills})",
            failed,
            0,
            half,
            result(again, other(prepared_in(place / "data"))),
        )


class Silent(BaseHTTPRequestHandler):
    """Never answers."""

    def do_POST(self) -> None:
        """Whatever is asked."""
        time.sleep(3600)

    do_GET = do_POST

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class FallsSilent(Silent):
    """Answers what wandb asks when a run begins, as its server would, and nothing else."""

    def do_POST(self) -> None:
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode(errors="replace")
        if "upsertBucket" not in asked and "RunResumeStatus" not in asked:
            super().do_POST()
        owner = {"id": "UA==", "name": "anomaly3d", "entity": {"id": "RQ==", "name": "me"}}
        bucket = {"id": "QQ==", "name": "abc", "displayName": "x", "config": "{}", "project": owner}
        data = {"upsertBucket": {"bucket": bucket, "inserted": True}} if "upsertBucket" in asked else {}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def silent_server(after_login: bool = False) -> Iterator[str]:
    """A server that accepts and never answers, or not after a run has begun."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FallsSilent if after_login else Silent) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def no_tracking() -> Iterator[Row]:
    """No server, and one that never answers; the network is not asked."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    with silent_server() as silent:
        for name, server in (("refuses", nobody), ("hangs", silent)):
            runs = WORK / f"wandb-{name}" / "runs"
            words = [*TRAIN, *places(CALM / "data", runs), "logger=wandb"]
            env = {"WANDB_BASE_URL": server, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_DIR": str(runs)}
            done = run("train", *words, env=env)
            said = next((shown(line) for line in done.output.splitlines() if line.startswith("W&B is")), "")
            after = result(done, [d for d in compared(runs) if "wandb" not in d])
            failed = Ended(done.code, done.seconds, "", said)
            yield row(f"W&B {name}", "a server that " + name, failed, 0, half_written(runs / "demo" / PHASE), after)
    with silent_server(after_login=True) as silent:
        runs = WORK / "wandb-falls-silent" / "runs"
        env = {"WANDB_BASE_URL": silent, "WANDB_API_KEY": KEY, "WANDB_MODE": "online", "WANDB_DIR": str(runs)}
        done = run("train", *TRAIN, *places(CALM / "data", runs), "logger=wandb", env=env, finish=20)
        after = result(done, [d for d in compared(runs) if "wandb" not in d])
        made_by = "a server that answers at the start only; 20 s in place of 600 at the end"
        yield row("W&B falls silent", made_by, done, 0, half_written(runs / "demo" / PHASE), after)


def damaged_files() -> Iterator[Row]:
    """A byte of a prepared volume, one cut short, one of what is made from them; asked by train and by evaluate."""
    data, runs = copy("damaged")
    shutil.copytree(CALM / "runs", runs)
    images = sorted(prepared_in(data).glob("image/*.nii.gz"))
    for name, damage in (("a byte changed", flip), ("cut short", cut)):
        damage(images[0])
        failed = run("evaluate", *places(data, runs), "logger=none")
        again = run("prepare", *PREPARE, f"data_dir={data}")
        after = result(again, other(prepared_in(data)))
        yield row("damaged prepared volume, evaluate", name, failed, 0, [], f"prepare: {after}")
    flip(images[-1])
    done = run("train", *TRAIN, *places(data, runs, "new"))
    said = next((shown(line) for line in done.output.splitlines() if "made again" in line), "")
    found = [*other(prepared_in(data)), *compared(runs, "new")]
    failed = Ended(done.code, done.seconds, "", said)
    yield row("damaged prepared volume, train", "a byte changed", failed, 0, [], result(done, found))
    flip(pasted := next(prepared_in(data).glob("pseudo-*/validation-0000~patch.nii.gz")))
    failed = run("train", *TRAIN, *places(data, runs, "pasted"))
    pasted.unlink()
    again = run("train", *TRAIN, *places(data, runs, "pasted"))
    yield row("damaged pasted anomaly, train", "a byte changed", failed, 0, [], result(again, compared(runs, "pasted")))


def flip(path: Path) -> None:
    """Change a byte."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave out the second half."""
    os.truncate(path, path.stat().st_size // 2)


def two_at_once() -> Iterator[Row]:
    """Two trainings of one name; two prepares of one cohort from nothing."""
    runs = WORK / "twice" / "runs"
    words = [*TRAIN, *places(CALM / "data", runs)]
    first = start("train", *words)
    wait_for(first, (runs / "demo" / PHASE).exists)
    os.kill(first.pid, signal.SIGSTOP)  # the second takes seconds to start
    failed = run("train", *words)
    os.kill(first.pid, signal.SIGCONT)
    yield row("two trainings of one run", "at once", failed, 0, [], "first: " + result(ended(first), compared(runs)))
    data = WORK / "twice" / "data"
    begun, both = time.monotonic(), [start("prepare", *PREPARE, f"data_dir={data}") for _ in range(2)]
    first_ended, second_ended = (ended(process, begun) for process in both)
    half = half_written(data)
    yield row(
        "two prepares of one cohort", "at once", second_ended, 0, half, result(first_ended, other(prepared_in(data)))
    )


def odd_names() -> Iterator[Row]:
    """Locales, encodings, and names that few programs are tried with."""
    compiled = WORK / "locales"
    compiled.mkdir()
    with suppress(FileNotFoundError):  # where localedef is not installed, Python takes such locales for C
        for source, charset in (("tr_TR", "UTF-8"), ("de_DE", "ISO-8859-1")):
            subprocess.run(["localedef", "-i", source, "-f", charset, compiled / f"{source}.{charset}"], check=False)
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    for name, env in (
        ("LC_ALL=tr_TR.UTF-8", {"LC_ALL": "tr_TR.UTF-8"}),
        ("LC_ALL=de_DE.ISO-8859-1", {"LC_ALL": "de_DE.ISO-8859-1"}),
        ("LC_ALL=C PYTHONIOENCODING=ascii", ascii_only),
        ("LC_ALL=POSIX PYTHONUTF8=0", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ):
        odd = "Größe 日本 🙂"
        runs = WORK / name.replace("/", " ") / odd
        env |= {"LOCPATH": str(compiled)}
        failed = run("train", *TRAIN, *places(CALM / "data", runs, odd), env=env)
        again = run("train", *TRAIN, *places(CALM / "data", runs, odd)) if failed.code else failed
        after = result(again, compared(runs, odd))
        yield row(f"locale, run and folder named {odd}", name, failed, 0, half_written(runs), after)
    raw = sorted((CALM / "data/raw").glob("*/ct/*.nii.gz"))
    scans, data = WORK / "scans für 日本 🧠", WORK / "daten ü 🙂"
    scans.mkdir()
    names = ["Müller 1", unicodedata.normalize("NFD", "Gößling"), "日本", "🧠 kopf", "İıŞ", "a'b\"c; $(x)"]
    for source, name in zip(raw, names, strict=False):
        shutil.copy(source, scans / f"{name}.nii.gz")
    words = [word for word in PREPARE if not word.startswith("dataset.")]
    words += ["dataset=folder", f"dataset.root={scans}", "dataset.label=0", f"data_dir={data}"]
    shutil.copy(raw[-1], odd_file := os.fsencode(scans) + b"/latin-\xfc.nii.gz")
    failed = run("prepare", *words)
    os.remove(odd_file)
    again = run("prepare", *words, env=ascii_only)
    made = len(list(data.glob("*/*/image/*.nii.gz")))
    after = f"without it, LC_ALL=C PYTHONIOENCODING=ascii: exit code {again.code}, {made} of {len(names)} scans"
    yield row("names of scans", f"{', '.join(names)}, one not in UTF-8", failed, 0, half_written(data), after)


FAILURES = {
    f.__name__: f
    for f in (
        full_disk_prepare,
        full_disk_train,
        read_only,
        not_a_number,
        out_of_memory,
        dead_worker,
        no_tracking,
        damaged_files,
        two_at_once,
        odd_names,
    )
}


def main(names: list[str]) -> None:
    """Make the failures of these names, or all."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_NAMESPACE) == 0:  # what is mounted from here on goes with this process, however that ends
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    begun = time.monotonic()
    if not names:
        shutil.rmtree(WORK, ignore_errors=True)
    calm()
    file = HERE / "failures.json"
    table = json.loads(file.read_text()) if names and file.exists() else {}
    for name in names or FAILURES:
        table[name] = [asdict(made) for made in FAILURES[name]()]
        file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
    say(f"{time.monotonic() - begun:.0f} s\n\n{markdown(table)}")


if __name__ == "__main__":
    main(sys.argv[1:])
