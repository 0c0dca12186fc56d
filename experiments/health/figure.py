"""What a healthy and a broken phase 1 look like: the numbers of ``health.json`` of two runs, with their alarm limits.

``python -m experiments.health.figure demo broken`` writes ``health.png`` from ``runs/demo/gan`` and
``runs/broken/gan``.
"""

import argparse
import json
import math
from pathlib import Path

import matplotlib.pyplot as plt

from anomaly3d.evaluation.figures import COLOURS
from anomaly3d.evaluation.health import ALARMS

HERE = Path(__file__).parent


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("healthy")
    parser.add_argument("broken")
    arguments = parser.parse_args()
    alarms = ALARMS["gan"]
    figure, grid = plt.subplots(2, 3, figsize=(10, 5), layout="constrained")
    for axes, alarm in zip(grid.flat, alarms, strict=True):
        for colour, run in zip(COLOURS, (arguments.healthy, arguments.broken), strict=False):
            health = json.loads((Path("runs") / run / "gan" / "health.json").read_text())
            values = [row[alarm.number] for row in health["history"]]
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, color=colour, label=run)
        for limit in (alarm.low, alarm.high):
            if math.isfinite(limit) and limit not in (0, -1):
                axes.axhline(limit, color="0.5", linestyle="--", linewidth=0.8)
        axes.set(title=alarm.number.replace("_", " "), xlabel="validation")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(HERE / "health.png", dpi=90)


if __name__ == "__main__":
    main()
