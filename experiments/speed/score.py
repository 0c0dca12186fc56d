"""Seconds a scan of scoring: the product under Lightning against the plain algorithm, in turn; do ranks change?

``python -m experiments.speed.score --json out.json`` times networks with random weights on random volumes. With
``--run NAME`` it also scores the test scans of a trained run in float32 and as the product does, and compares them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.utils.data import DataLoader

from anomaly3d.data.batch import Batch
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.base import Findings
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.evaluation.metrics import auc_of, ranked
from anomaly3d.phases.base import Predicting, freeze
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.inference import prepared_of, round_weights
from anomaly3d.system.memory import keep_freed_memory
from anomaly3d.system.quiet import hush
from anomaly3d.system.trainer import make_trainer, resolve_trainer
from experiments.speed.plain import plain_copy
from experiments.speed.train import BATCH, WARM, config_of, now, phase_of, volumes


@torch.no_grad()
def plain_scores(detector: FAnoGAN, x: Tensor) -> dict[str, Tensor]:
    """A(x), its parts, the latent distance and the reconstruction, written straight down."""
    z = detector.encoder(x)
    reconstruction = detector.generator(z)
    image = (x - reconstruction).square().flatten(1).mean(1)
    feature = (detector.critic.features(x) - detector.critic.features(reconstruction)).square().flatten(1).mean(1)
    latent = (z - detector.encoder(reconstruction)).square().mean(1)
    return {"total": image + detector.kappa * feature, "latent": latent, "reconstruction": reconstruction}


class InTurn(Predicting):
    """The product's step, and after each a plain one on the same batch."""

    def __init__(self, detector: FAnoGAN) -> None:
        super().__init__(detector)
        self.plain = plain_copy(detector).eval()
        self.seconds: dict[str, list[float]] = {"ours": [], "plain": []}
        self.totals: dict[str, list[Tensor]] = {"ours": [], "plain": []}

    def predict_step(self, batch: Batch, batch_idx: int) -> Findings:
        started = now(self.device)
        result = super().predict_step(batch, batch_idx)
        middle = now(self.device)
        with torch.autocast(self.device.type, enabled=False):
            plain = plain_scores(self.plain, batch["image"].contiguous())
        self.seconds["ours"].append(middle - started)
        self.seconds["plain"].append(now(self.device) - middle)
        self.totals["ours"].append(result.scores["total"])
        self.totals["plain"].append(plain["total"].double().cpu())
        return result


def predict(module: InTurn, data: Any, config: Any) -> None:
    """Go through ``data`` as the evaluation does."""
    hush()
    keep_freed_memory()
    options = resolve_trainer(config.trainer)
    round_weights(module.detector, options["precision"])
    trainer = make_trainer(options, logger=False, enable_checkpointing=False)
    trainer.predict(module, data, return_predictions=False)


def measure(model: str, batches: int) -> dict[str, Any]:
    """Seconds a scan of both."""
    config, batch = config_of("encoder", model), BATCH[model]
    detector = phase_of(config).detector
    freeze(detector)
    module = InTurn(detector)
    x = volumes(batch)
    items = [{"image": x[i % batch], "scan_id": str(i)} for i in range(batch * (batches + WARM))]
    predict(module, DataLoader(items, batch_size=batch), config)
    ours, plain = (float(np.median(module.seconds[side][WARM:])) / batch for side in ("ours", "plain"))
    return {"plain_s": round(plain, 5), "ours_s": round(ours, 5), "ratio": round(plain / ours, 2), "batches": batches}


def agreement(run: Path, data_dir: Path) -> dict[str, Any]:
    """Rank correlation and AUC of the product's scores and of the plain float32 ones on a run's test scans."""
    trained = choose_trained(run, "fanogan")
    data = HeadCTDataModule(prepared_of(trained, data_dir), 8)
    detector = trained.load()
    freeze(detector)
    module = InTurn(detector)
    predict(module, data, config_of("encoder", "compact"))
    table = data.split("test").reset_index(drop=True)
    totals = {side: torch.cat(parts)[: len(table)].numpy() for side, parts in module.totals.items()}
    areas = {side: auc_of(ranked(table.assign(total=values))).value for side, values in totals.items()}
    return {
        "run": run.name,
        "scans": len(table),
        "spearman": float(spearmanr(totals["ours"], totals["plain"]).statistic),
        "auc": areas,
        "auc_gap": abs(areas["ours"] - areas["plain"]),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=list(BATCH))
    parser.add_argument("--run", help="a finished run under runs/")
    arguments = parser.parse_args()
    table: dict[str, Any] = {model: measure(model, arguments.batches) for model in arguments.models}
    if arguments.run:
        table["agreement"] = agreement(Path("runs") / arguments.run, Path("data"))
    print(json.dumps(table, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
