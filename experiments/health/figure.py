"""What a healthy and a collapsed phase 1 look like: health numbers with their usual range, and samples of both.

``python -m experiments.health.figure healthy collapsed`` reads two runs and writes ``health.png`` and ``health.json``.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from omegaconf import OmegaConf

from anomaly3d.detectors.base import load_detector
from anomaly3d.phases.base import Alarm
from anomaly3d.phases.gan import GANPhase
from anomaly3d.report.figures import COLOURS
from anomaly3d.system.files import written_whole
from anomaly3d.training.callbacks.pictures import middle_planes

HERE = Path(__file__).parent
SAMPLES = 3
LINTHRESH = 1.0  # up to where the axis is linear: a number that runs away needs a logarithm


def draw_number(axes: Axes, alarm: Alarm, runs: dict[str, dict[str, Any]]) -> None:
    """One number of both runs by critic step; its usual range in grey, alarms as crosses."""
    ends = np.clip([alarm.low, alarm.high], -1e3, 1e3)
    if np.isfinite([alarm.low, alarm.high]).any():
        axes.axhspan(*ends, color="0.92")
    for colour, (name, health) in zip(COLOURS, runs.items(), strict=False):
        values = [h.get(alarm.number, np.nan) for h in health["history"]]
        steps = health["every"] * np.arange(1, len(values) + 1)
        axes.plot(steps, values, color=colour, linewidth=1.6, label=name)
        fired = np.array([a["epoch"] - 1 for a in health["alarms"] if a["number"] == alarm.number], int)
        axes.plot(steps[fired], np.array(values)[fired], "x", color=colour, markersize=9, markeredgewidth=2)
    axes.set_yscale("symlog", linthresh=LINTHRESH)
    shown = [h.get(alarm.number, np.nan) for r in runs.values() for h in r["history"]]
    axes.set_ylim(min(-0.1, np.nanmin(shown) * 1.2), max(1.2, np.nanmax(shown) * 1.3))
    axes.set_title(alarm.number, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


@torch.no_grad()
def samples_of(model: Path) -> np.ndarray:
    """Three planes of ``SAMPLES`` generated volumes, side by side."""
    detector = load_detector(model).eval()
    z = torch.randn(SAMPLES, detector.model.latent, generator=torch.Generator().manual_seed(0))
    return np.concatenate([middle_planes(v[0], np.ones(3)) for v in detector.generator(z)], axis=1)


def main() -> None:
    """Draw two runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    names = parser.parse_args()
    folders = {name: names.runs_dir / name / "fanogan" / "gan" for name in names.runs}
    runs = {}
    for name, folder in folders.items():
        every = OmegaConf.load(folder / "config.yaml").phase.steps_per_epoch
        runs[name] = {"every": every, **json.loads((folder / "health.json").read_text())}
    figure = plt.figure(figsize=(9, 4.2 + 1.1 * len(runs)), layout="constrained")
    places = [[a.number for a in GANPhase.alarms[i : i + 3]] for i in (0, 3)]
    axes: dict[Any, Axes] = figure.subplot_mosaic(
        [*places, *([[name] * 3 for name in runs])], height_ratios=[1.9] * 2 + [1.1] * len(runs)
    )
    for alarm in GANPhase.alarms:
        draw_number(axes[alarm.number], alarm, runs)
    axes["sameness"].legend(fontsize=8, frameon=False)
    for name, folder in folders.items():
        axes[name].imshow(samples_of(folder / "model.pt"), cmap="gray", vmin=0, vmax=255)
        axes[name].set_title(f"{name}: {SAMPLES} samples", fontsize=9)
        axes[name].set(xticks=[], yticks=[])
    for number in places[1]:
        axes[number].set_xlabel("critic steps", fontsize=8)
    with written_whole(HERE / "health.png") as path:
        figure.savefig(path, dpi=110)
    with written_whole(HERE / "health.json") as path:
        path.write_text(json.dumps(runs, indent=1) + "\n")
    for name, health in runs.items():
        for alarm in health["alarms"]:
            print(f"{name}: step {health['every'] * alarm['epoch']}: {alarm['words']}")


if __name__ == "__main__":
    main()
