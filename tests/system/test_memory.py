import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
from anomaly3d.system.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for turn in range(6):
    if turn == 1:
        before = faults()
    b'x' * 40_000_000
print(faults() - before)
"""


LEFT_BEHIND = """
from pathlib import Path
import numpy as np
from anomaly3d.system.memory import keep_freed_memory, release_memory
keep_freed_memory()
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
class Job:
    def __init__(self):
        self.weights, self.me = [np.ones(1_000_000) for _ in range(25)], self
before = resident()
Job()
left = resident() - before
release_memory()
print(left, resident() - before)
"""


def faults(how: str) -> int:
    """Page faults of five strings that are made and freed one after the other."""
    found = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_faults():
    assert faults("keep") < 100
    assert faults("as usual") > 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_a_job_left_behind_is_given_back():
    found = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, check=True)
    left, after = map(int, found.stdout.split())
    assert left > 190e6
    assert after < 20e6
