"""Core-seconds that making and preparing a phantom take, of this code and of another checkout, in turn.

``git worktree add /tmp/other COMMIT``, then ``python -m experiments.speed.prepare --other /tmp/other --json FILE``:
medians over rounds, in each of which both make and prepare the same heads, each in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

SIZES = {"256x256x36": (256, 36), "512x512x30": (512, 30)}
KINDS = ((), ("subdural",), (), ("intraparenchymal",), (), ("subarachnoid",))


def measure(data_dir: Path) -> dict[str, dict[str, float]]:
    """Core-seconds a head in this process, for each size; the first head, which loads what all share, not counted."""
    from anomaly3d.cohorts.phantom.generate import generate
    from anomaly3d.preprocessing.base import Companions
    from experiments.preprocessing.measure import as_read, ncct_of_conf

    ncct = ncct_of_conf()
    ncct.setup(data_dir)
    found = {}
    for name, (matrix, slices) in SIZES.items():
        made, prepared = [], []
        for i, kinds in enumerate(((), *KINDS)):
            started = time.process_time()
            phantom = generate((0, 7, 7, i), kinds, "ABC"[i % 3], matrix, slices)
            middle = time.process_time()
            ncct.prepare(as_read(phantom.hu, phantom.affine), Companions())
            made.append(middle - started)
            prepared.append(time.process_time() - middle)
        found[name] = {"phantom_s": float(np.median(made[1:])), "prepare_s": float(np.median(prepared[1:]))}
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, help="checkout of another commit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)  # one round of this process's code, data folder
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(measure(arguments.once)))
        return
    code = {"this": Path.cwd()} | ({"other": arguments.other} if arguments.other else {})
    data = {name: Path(mkdtemp()) for name in code}
    rounds: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in code}
    for k in range(arguments.rounds):
        for name, checkout in code.items():
            paths = os.pathsep.join(map(str, (checkout, Path.cwd())))  # this file where the other lacks it
            environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, __file__, "--once", str(data[name])]
            ended = subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
            rounds[name].append(json.loads(ended.stdout.splitlines()[-1]))
            print(f"round {k + 1} of {arguments.rounds}, {name}: {rounds[name][-1]}", flush=True)
    table = {
        size: {
            name: {part: round(float(np.median([r[size][part] for r in found])), 3) for part in found[0][size]}
            for name, found in rounds.items()
        }
        for size in SIZES
    }
    print(json.dumps(table, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
