"""Evaluate a run: score its test scans with each stage and the trivial detectors, then metrics, figures, page."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig
from rich.table import Table

from anomaly3d.data import HeadCTDataModule
from anomaly3d.detectors.base import Detector
from anomaly3d.detectors.controls import CONTROLS, Twin
from anomaly3d.detectors.fanogan import FAnoGAN
from anomaly3d.detectors.registry import load_detector
from anomaly3d.errors import UserError
from anomaly3d.evaluation.callbacks import CollectScores
from anomaly3d.evaluation.figures import Case, case_figure, group_figure, lesion_figure, roc_figure
from anomaly3d.evaluation.metrics import summarise
from anomaly3d.files import written_whole
from anomaly3d.hardware import make_trainer, trainer_options
from anomaly3d.lineage import PhaseFolder, require_same_data
from anomaly3d.phases.base import Scoring, freeze
from anomaly3d.progress import console, is_leader, say
from anomaly3d.quiet import hush
from anomaly3d.report.page import auc_rows, set_aside_text, write_page

STAGES = ("finetune", "encoder")  # of f-AnoGAN, the most trained first
EXAMPLES = 2  # highest and lowest scores shown of each class


def finished_stages(run: Path, detector: str = "fanogan") -> dict[str, PhaseFolder]:
    """The finished phases of a run's detector that can score, the most trained first.

    Raises:
        UserError: there is none.
    """
    stages = {s: PhaseFolder(run / s) for s in (STAGES if detector == "fanogan" else (detector,))}
    done = {s: f for s, f in stages.items() if (lineage := f.read()) and lineage["finished"] and f.model.exists()}
    if not done and detector != "fanogan":
        raise UserError(
            f"{run} holds no {detector}: fit one with 'python -m anomaly3d.train +phase=fit detector={detector} "
            f"run={run.name}' first"
        )
    if not done:
        raise UserError(
            f"{run} holds no finished encoder or finetune phase: 'make demo' trains one on the phantom cohort, "
            "'python -m anomaly3d.train -m +phase=gan,encoder,finetune run=NAME' one on your "
            "data; name it with run=NAME"
        )
    return done


def prepared_folder(lineage: dict[str, Any], config_file: Path, data_dir: Path) -> Path:
    """Where the prepared data of a run lie.

    Raises:
        UserError: they are gone.
    """
    found = sorted(data_dir.glob(f"*/{lineage['prepared']}/manifest.csv"))
    for manifest in found:
        if manifest.parent.parent.name == lineage["cohort"]:
            return manifest.parent
    raise UserError(
        f"the prepared data of this run ({lineage['cohort']}/{lineage['prepared']}) are not under {data_dir}: run "
        f"'python -m anomaly3d.prepare' with the settings in {config_file}, or give data_dir=..."
    )


def score_test(
    detector: Detector,
    data: HeadCTDataModule,
    folder: Path,
    config: DictConfig,
    reconstructions: bool = False,
) -> pd.DataFrame:
    """The table of scores of a detector on the test split, also written to ``folder/scores.csv``."""
    freeze(detector)
    collect = CollectScores(folder, reconstructions)
    options, _ = trainer_options(config.trainer)
    trainer = make_trainer(
        options,
        logger=False,
        callbacks=[collect],
        enable_progress_bar=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    trainer.test(Scoring(detector), data, verbose=False)
    return collect.table()


def evaluate_run(config: DictConfig) -> int:
    """Evaluate ``config.run`` and return the command's exit code."""
    hush()
    run = Path(config.runs_dir) / config.run
    name = config.detector.name
    stages = finished_stages(run, name)
    stage, folder = next(iter(stages.items()))
    lineage = folder.read()
    assert lineage is not None
    prepared = prepared_folder(lineage, folder.path / "config.yaml", Path(config.data_dir))
    data = HeadCTDataModule(prepared, config.batch, 1)
    data.require("train", "validation", "test")
    require_same_data(lineage, prepared, folder.path)
    out = (run if name == "fanogan" else folder.path) / "evaluation"
    count = len(data.split("test"))
    say(f"evaluate: {count} test scans with {stage} of run {config.run}")
    table = score_test(load_detector(stage, folder.model), data, out, config, reconstructions=True)
    others: dict[str, pd.DataFrame] = {}
    if stage == "finetune" and "encoder" in stages:
        say("evaluate: the same scans before fine-tuning")
        encoder = FAnoGAN.load(stages["encoder"].model)
        others["encoder_only"] = score_test(encoder, data, out / "encoder_only", config)
    say("evaluate: the same scans with controls")
    for control, detector in controls(run, data, stage).items():
        others[control] = score_test(detector, data, out / control, config)
    if not is_leader():
        return 0
    metrics = summarise(table, others, read_set_aside(prepared))
    with written_whole(out / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=1))
    curves = {"this model": table, **others}
    figures = {
        "roc": save(roc_figure({n.replace("_", " "): t for n, t in curves.items()}), out / "figures" / "roc"),
        "lesions": save(lesion_figure(table), out / "figures" / "lesions"),
        "cases": save(case_figure(choose_cases(table, data, out)), out / "figures" / "cases", ".png"),
        "groups": save(group_figure(table), out / "figures" / "groups"),
    }
    write_page(out / "report.html", config.run, metrics, table, figures, lineage)
    show(metrics)
    if metrics["set_aside"]:
        say(f"test scans without a score: {set_aside_text(metrics['set_aside'])}")
    say(f"report: {(out / 'report.html').resolve()}")
    return 0


def controls(run: Path, data: HeadCTDataModule, but: str) -> dict[str, Detector]:
    """What stands in every table, except the detector ``but`` itself.

    Trivial methods, fitted here in seconds; a supervised network where the run holds one; the twin where there is one.
    """
    train, validation = data.volumes("train"), data.volumes("validation")
    found: dict[str, Detector] = {n: c.fit(train, validation) for n, c in CONTROLS.items() if n != but}
    supervised = PhaseFolder(run / "supervised")
    if but != "supervised" and supervised.model.exists():
        found["supervised"] = load_detector("supervised", supervised.model)
    if (data.split("test")["twin"] != "").all():
        found["twin"] = Twin()
    return found


def read_set_aside(prepared: Path) -> pd.DataFrame:
    """The test scans that quality control rejected or that could not be read."""
    quality = pd.read_csv(prepared / "quality.csv", dtype=str, keep_default_na=False)
    scored = (quality["verdict"] == "accepted") | (quality["group"] == "low_quality")
    return quality[(quality["split"] == "test") & ~scored]


def choose_cases(table: pd.DataFrame, data: HeadCTDataModule, out: Path) -> list[Case]:
    """The highest and the lowest scores of abnormal and of other scans, which are the detector's hits and errors."""
    cases = []
    rows = data.table.set_index("scan_id")
    for abnormal, name in ((True, "abnormal"), (False, "normal")):
        ordered = table[(table["label"] == "1") == abnormal].sort_values("total", ascending=False)
        picks = pd.concat([ordered.head(EXAMPLES), ordered.tail(EXAMPLES)]).drop_duplicates("scan_id")
        for row in picks.to_dict("records"):
            scan = rows.loc[row["scan_id"]]
            lesion = load(scan.lesion_mask) if scan.lesion_mask else None
            kind = row["lesions"] or (name if row["label"] else "unlabelled")
            cases.append(
                Case(
                    f"{kind}\nscore {row['total']:.3f}",
                    load(scan.image),
                    load(out / "reconstruction" / f"{row['scan_id']}.nii.gz"),
                    lesion,
                )
            )
    return cases


def load(path: str | Path) -> np.ndarray:
    """Voxels of a NIfTI file as float32."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj, np.float32)


def save(figure: Figure, stem: Path, shown: str = ".svg") -> Path:
    """Write a figure as SVG and PNG; returns the file that the page shows."""
    for suffix in (".svg", ".png"):
        with written_whole(stem.with_suffix(suffix)) as path:
            figure.savefig(path, dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
    plt.close(figure)
    return stem.with_suffix(shown)


def show(metrics: dict[str, Any]) -> None:
    """The AUC table in the terminal."""
    table = Table(title="Test scans, value [95 % interval]", title_justify="left")
    for column in ("Detector or part", "AUC", "AP", "normal + abnormal"):
        table.add_column(column)
    for row in auc_rows(metrics):
        table.add_row(*row.values())
    console.print(table)
