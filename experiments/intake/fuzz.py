"""A thousand damaged inputs through ``prepare``: is there a traceback, a hang, a scan without a row, unbounded memory?

    python -m experiments.intake.fuzz --count 1000

writes ``fuzz.json``: by kind of damage how many were accepted, rejected, unreadable, and what the whole call took.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly3d.preprocessing.scan import digest_of
from anomaly3d.scans.volume import Volume
from tests.damage import damaged
from tests.writers import small_head

HERE = Path(__file__).parent


def largest_worker(pid: int) -> float:
    """Largest memory in MB that a process below ``pid`` has had so far."""
    peak = 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            if int(fields["PPid"]) == pid:
                peak = max(peak, int(fields.get("VmHWM", "0").split()[0]) / 1024)
        except (FileNotFoundError, ProcessLookupError, KeyError, ValueError):
            continue
    return peak


def main() -> None:
    """Make the inputs, prepare them in one call, and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--work", type=Path, default=Path("data/intake/fuzz"))
    arguments = parser.parse_args()
    head, kinds, rows = small_head(), {}, ["scan_id,subject_id,image,label,split"]
    for seed in range(arguments.count):
        place = (arguments.work / "inputs" / f"s{seed:04d}").resolve()
        kinds[f"s{seed:04d}"] = damaged(seed, place, head)
        files = [path for path in place.iterdir() if path.suffix not in (".img",)]
        image = place if "dicom" in kinds[f"s{seed:04d}"] or len(files) != 1 else files[0]
        rows.append(f"s{seed:04d},s{seed:04d},{image},,test")
    (arguments.work / "manifest.csv").write_text("\n".join(rows) + "\n")
    command = [sys.executable, "-m", "anomaly3d.prepare", "dataset=manifest", "workers=2"]
    command += [f"dataset.manifest={arguments.work / 'manifest.csv'}", f"data_dir={arguments.work / 'data'}"]
    started, peak = time.monotonic(), 0.0
    with (arguments.work / "log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        call = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        while call.poll() is None:
            peak = max(peak, largest_worker(call.pid))
            time.sleep(0.2)
    quality = pd.read_csv(next(arguments.work.glob("data/*/*/quality.csv")), dtype=str, keep_default_na=False)
    text = (arguments.work / "log").read_text()
    verdicts: dict[str, Counter] = defaultdict(Counter)
    for row in quality.to_dict("records"):
        verdicts[kinds[row["scan_id"]]][row["verdict"]] += 1
    clipped = np.asarray(head.dataobj).clip(-1024, 3071).astype(np.float32)
    sound = digest_of(Volume(clipped, head.affine))
    accepted = quality[quality["verdict"] == "accepted"]
    failed = quality[quality["reasons"].str.contains("this program")]
    table = {
        "inputs": arguments.count,
        "rows": len(quality),
        "exit": call.returncode,
        "tracebacks": text.count("Traceback"),
        "program_failed": failed["reasons"].tolist(),
        "seconds": round(time.monotonic() - started, 1),
        "largest_worker_mb": round(peak),
        "accepted": len(accepted),
        "accepted_with_other_voxels": {
            row["scan_id"]: kinds[row["scan_id"]] for row in accepted.to_dict("records") if row["content"] != sound
        },
        "by_kind": {kind: dict(counts) for kind, counts in sorted(verdicts.items())},
        "reasons": dict(Counter(quality["reasons"].str.replace(r"-?\d[\d.e+]*", "#", regex=True)).most_common(40)),
    }
    (HERE / "fuzz.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps({k: v for k, v in table.items() if k != "reasons"}, indent=1))


if __name__ == "__main__":
    main()
