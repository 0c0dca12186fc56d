"""What judging by both sides of a head gains: ``python -m experiments.beyond.mirrored fanogan=runs/bench ...``

The same trained networks with ``mirrored`` off and on, on the run's own cohort. Writes ``mirrored.json`` and the table
of ``README.md``.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, RawMaps
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.statistics.auc import auc, compare_auc
from anomaly3d.system.progress import track
from experiments.beyond.kept import HERE, exceedance, measured
from experiments.scores.measure import fill, markdown

SCORES = ("A(x)", "exceedance")


@torch.inference_mode()
def found(detector: FAnoGAN, data: HeadCTDataModule, split: str, what: str) -> tuple[list[RawMaps], np.ndarray]:
    """Residuals and A(x) of the scans of a split."""
    images, brains = data.volumes(split), data.volumes(split, "brain_mask")
    maps: list[RawMaps] = []
    totals = []
    for i, age in enumerate(track(data.split(split)["age"], len(images), what)):
        x = images[i : i + 1].float()
        one = detector.examine({"image": x, "scan_id": [""]})
        assert one.reconstruction is not None
        raw = {RESIDUAL: (x - one.reconstruction)[0, 0].numpy()}
        maps.append(RawMaps(raw, brains[i, 0].numpy() > 0, float(age) if age else None))
        totals.append(float(one.scores["total"][0]))
    return maps, np.array(totals)


def judge(detector: FAnoGAN, data: HeadCTDataModule, what: str) -> dict[str, np.ndarray]:
    """Both scores of the test scans."""
    healthy = Healthy(0, np.zeros(()), {}, {}, {})
    for raw in found(detector, data, "validation", f"{what}, validation")[0]:
        healthy = healthy.plus(raw, 1)
    maps, totals = found(detector, data, "test", f"{what}, test")
    return dict(zip(SCORES, (totals, np.array([exceedance(raw, healthy) for raw in maps])), strict=True))


def compared(table: pd.DataFrame, one: np.ndarray, two: np.ndarray) -> dict[str, Any]:
    """AUC by site, without and with the mirror image."""
    told = {}
    for site, rows in table.reset_index(drop=True).groupby("site"):
        where, labels = rows.index.to_numpy(), rows["label"].astype(int).to_numpy()
        told[str(site)] = {
            "once": auc(labels, one[where]).as_json(),
            "mirrored": auc(labels, two[where]).as_json(),
            "gain": compare_auc(labels, two[where], one[where]).as_json(),
        }
    return told


def measure(run: Path, name: str, data_dir: Path) -> dict[str, Any]:
    """One detector's scores both ways."""
    trained = choose_trained(run, name)
    data = HeadCTDataModule(prepared_of(trained, data_dir), 8)
    data.setup()
    detector = trained.load().eval()
    assert isinstance(detector, FAnoGAN)
    ways = []
    for detector.mirrored in (False, True):
        ways.append(judge(detector, data, f"{name}, {'mirrored' if detector.mirrored else 'once'}"))
    return {score: compared(data.split("test"), ways[0][score], ways[1][score]) for score in SCORES}


def main() -> None:
    """Measure what is not in ``mirrored.json`` yet, and fill the table."""
    kept = measured(__doc__, "mirrored.json", measure)
    rows = []
    for name, scores in kept.items():
        for score, sites in scores.items():
            for site, told in sites.items():
                gain = told["gain"]
                low, high = gain["ci95"]
                both = [f"{told[way]['value']:.3f}" for way in ("once", "mirrored")]
                more = f"{gain['value']:+.3f} [{low:+.3f}, {high:+.3f}]"
                rows.append([name, score, site, *both, more, f"{gain['p']:.3f}"])
    head = ["detector", "score", "site", "once", "mirrored", "gain", "p"]
    fill(HERE / "README.md", "mirrored", markdown(head, rows))


if __name__ == "__main__":
    main()
