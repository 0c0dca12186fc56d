"""``anomaly3d COMMAND ...``: the commands under one name, from anywhere."""

import runpy
import sys

import anomaly3d
from anomaly3d.arguments import COMMANDS


def main() -> int:
    """Run ``python -m anomaly3d.COMMAND``; returns the exit code of a call without a command."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name == "--version":
        print(anomaly3d.__version__)
        return 0
    if name not in COMMANDS:
        print(f"anomaly3d {'|'.join(COMMANDS)} ...; each has --help", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    del sys.argv[1]
    # as a module of its own, because Lightning starts the other processes of a trainer by the module's name
    runpy.run_module(f"anomaly3d.{name}", run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
