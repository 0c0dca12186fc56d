"""Commands as a user starts them, and what they leave: exit code, last sentence, files lost or half-written."""

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomaly3d.system.files import sha256
from anomaly3d.system.progress import say
from experiments.reliability.kill import SMALL, differences

WORK = Path("runs/experiments/failures").absolute()
CALM = WORK / "calm"  # data and runs that nothing disturbed
PHASE = Path("autoencoder", "fit")
TRAIN = ["detector=autoencoder", *(word for word in SMALL if "model." not in word), "++phase.steps=8"]
TRAIN += ["++phase.steps_per_epoch=2", "workers=2"]
PREPARE = [word for word in TRAIN if word.startswith(("dataset.", "preprocessing.", "workers="))]
DAMAGE = (EOFError, OSError, ValueError)


@dataclass
class Row:
    """How one failure went; ``after`` is what the same command did when its cause was gone."""

    failure: str
    made_by: str
    exit_code: int
    seconds: int
    sentence: str
    lost: int
    half_written: int
    after: str


@dataclass
class Ended:
    """A command that has ended; ``sentence`` is its last line on standard error, else on standard output."""

    code: int
    seconds: float
    output: str
    error: str

    @property
    def sentence(self) -> str:
        text = self.error.strip() or self.output.strip()
        return shown(text.splitlines()[-1]) if text else ""


def shown(text: str) -> str:
    """Without this machine's own folders."""
    return text.replace(f"{WORK}/", "").replace(str(WORK), ".")


def start(
    command: str, *words: str, env: dict[str, str] | None = None, memory: int | None = None, finish: int | None = None
) -> subprocess.Popen[str]:
    """Start a command as a user does.

    Args:
        memory: bytes of address space.
        finish: seconds that W&B gets at the end of a run; None: as always.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "LC_", "LANG"))}
    own |= {f"WANDB_{name}": str(WORK / "wandb") for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
    own |= {"LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "1", **(env or {})}
    limit = (lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory))) if memory else None
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    line = [sys.executable, "-m", f"anomaly3d.{command}", *words]
    if finish:
        code = f"from anomaly3d.runs import tracking; tracking.FINISH_TIMEOUT = {finish}"
        code += f"; from anomaly3d import {command}; raise SystemExit({command}.main())"
        line = [sys.executable, "-c", code, *words]
    return subprocess.Popen(line, env=own, text=True, errors="replace", preexec_fn=limit, **pipes)  # type: ignore[call-overload,no-any-return]


def ended(process: subprocess.Popen[str], begun: float | None = None) -> Ended:
    """Wait for a command."""
    begun = time.monotonic() if begun is None else begun
    output, error = process.communicate()
    return Ended(process.returncode, time.monotonic() - begun, output, error)


def run(command: str, *words: str, **how: Any) -> Ended:
    """Start a command and wait for it."""
    begun = time.monotonic()
    return ended(start(command, *words, **how), begun)


def wait_for(process: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    """Wait until something is there, or the process has ended."""
    while process.poll() is None and not there():
        time.sleep(0.05)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its place."""
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def half_written(folder: Path) -> list[str]:
    """Files that are no whole files of their kind, and what was left beside them."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and not whole(path)]


def whole(path: Path) -> bool:
    """Whether a file is one of its kind from beginning to end."""
    try:
        if path.suffix == ".gz":
            gzip.decompress(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_text())
    except DAMAGE:
        return False
    if path.suffix in (".ckpt", ".pt"):
        return zipfile.is_zipfile(path)
    left = path.name.startswith(".") and path.name.split(".")[1].isdigit()  # of ``written_whole``
    return not left and (path.stat().st_size > 0 or path.suffix in (".lock", "") or path.name.endswith(".lock"))


def other(prepared: Path) -> list[str]:
    """Prepared files that are not those of the calm run; outcomes hold dates of files."""
    differing = ("outcomes", "pseudo", "quality.html")  # dates, what training makes, and the folder's own place
    made, calm = (
        {name: digest for name, digest in digests(folder).items() if not name.startswith(differing)}
        for folder in (prepared, prepared_in(CALM / "data"))
    )
    return sorted(name for name in made.keys() | calm.keys() if made.get(name) != calm.get(name))


def prepared_in(data: Path) -> Path:
    """The folder of prepared scans below ``data_dir``."""
    return next(path for path in data.glob("drill-*/*") if path.is_dir())


def prepared_some(place: Path) -> bool:
    """Whether two scans are done."""
    return len(list(place.glob("data/drill-*/*/outcomes/*.json"))) > 1


def result(ended: Ended, found: list[str]) -> str:
    """What a command that went on came to."""
    if ended.code:
        return f"exit code {ended.code}: {ended.sentence}"
    return f"finished, {len(found)} differences" + (f": {', '.join(found[:3])}" if found else "")


def calm() -> None:
    """What nothing disturbs: prepared scans and a trained autoencoder; those that are there are kept."""
    for path in WORK.glob("*"):
        if path != CALM:
            shutil.rmtree(path)
    if (CALM / "runs/demo" / PHASE / "model.pt").exists():
        return
    for command, words in (("prepare", PREPARE), ("train", [*TRAIN, f"runs_dir={CALM / 'runs'}"])):
        done = run(command, *words, f"data_dir={CALM / 'data'}")
        assert done.code == 0, done.error


def copy(name: str) -> tuple[Path, Path]:
    """A folder of a failure's own, with the calm run's data; returns ``data_dir`` and ``runs_dir``."""
    shutil.copytree(CALM / "data", WORK / name / "data")
    return WORK / name / "data", WORK / name / "runs"


def places(data: Path, runs: Path, name: str = "demo") -> list[str]:
    """Where a command reads and writes."""
    return [f"data_dir={data}", f"runs_dir={runs}", f"run={name}"]


def compared(runs: Path, name: str = "demo") -> list[str]:
    """What differs between a run and the calm one."""
    return differences(CALM / "runs" / "demo" / PHASE, runs / name / PHASE)


def lost(before: dict[str, str], folder: Path) -> int:
    """How many files are gone or changed; a lock and a date are no loss."""
    now = digests(folder)
    return sum(now.get(name) != digest for name, digest in before.items())


def row(failure: str, made_by: str, failed: Ended, gone: int, half: list[str], after: str) -> Row:
    """One line of the table, also said."""
    traceback = " (TRACEBACK)" if "Traceback" in failed.error else ""
    made = Row(
        failure, made_by, failed.code, round(failed.seconds), failed.sentence + traceback, gone, len(half), after
    )
    say(f"{failure}, {made_by}: exit code {made.exit_code}, {made.seconds} s; lost {gone}, half-written {half}")
    say(f"  {made.sentence}")
    say(f"  after: {after}")
    return made


def markdown(table: dict[str, list[dict[str, Any]]]) -> str:
    """The table of README.md."""
    lines = ["| failure | made by | exit | what the user reads | lost, half-written | and then |", "|" + "---|" * 6]
    for made in (Row(**row) for rows in table.values() for row in rows):
        cells = (
            made.failure,
            made.made_by,
            made.exit_code,
            made.sentence,
            f"{made.lost}, {made.half_written}",
            made.after,
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)
