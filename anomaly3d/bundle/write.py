"""Write the folder of an exported detector, whole or not at all."""

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from safetensors.torch import save
from torch import Tensor

from anomaly3d.bundle.card import Facts, croissant, model_card, monai_metadata
from anomaly3d.bundle.cohort import FEW, SPLITS, counts_of
from anomaly3d.bundle.networks import Graph, require_onnx, write_graphs
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.runs.exported import DETECTOR, PREPROCESSING, SUMS, WEIGHTS
from anomaly3d.runs.folder import Trained
from anomaly3d.runs.lineage import data_hashes, same_data
from anomaly3d.scans.nifti import voxels
from anomaly3d.scoring.calibration import OWN, calibration_folder, load_calibration, sites_of
from anomaly3d.scoring.inference import preprocessor_of
from anomaly3d.scoring.learned_from import SEEN
from anomaly3d.system.files import sha256
from anomaly3d.system.progress import say

KNOWN = (  # of the lineage: what scoring asks of a detector, and what its page says of where it comes from
    *("title", "role", "reads", "synthetic", "version", "made_with"),
    *("config_hash", "git_commit", "prepared", "split_hash", "parent_sha256"),
)
VOLUMES = 10  # on which graphs are held against the detector


@dataclass(frozen=True)
class Export:
    """``conf/export``: where the folder goes, where prepared data lie, and whether it gets an ONNX file."""

    out: Path
    data_dir: Path
    onnx: bool


def export_detector(trained: Trained, wanted: Export) -> list[Graph]:
    """Write everything of a detector that others need; returns what became of its graphs.

    Raises:
        UserError: the folder is there already, a package is missing, or thresholds are another model's.
    """
    out = wanted.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir()) or out == Path.cwd()):
        raise UserError(f"out={wanted.out} is there already: choose another folder, or remove it")
    if wanted.onnx:
        require_onnx()
    beside = out.with_name(f".{out.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        try:
            beside.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"out={wanted.out} cannot be made: {error.strerror}") from error
        graphs = fill(beside, trained, wanted)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return graphs


def fill(folder: Path, trained: Trained, wanted: Export) -> list[Graph]:
    """All files of an export into a folder that is empty."""
    detector, preprocessor = trained.load(), preprocessor_of(trained)
    write_model(folder, trained, detector)
    sites = copy_calibrations(trained, folder / "calibration")
    table = prepared_table(trained, wanted.data_dir)
    volumes, brains, kind = check_volumes(table, preprocessor.resolution)
    graphs = write_graphs(detector, volumes, brains, folder, wanted.onnx)
    counts = [] if table is None else counts_of(table)
    facts = Facts(trained, preprocessor, counts, metrics_of(trained), graphs, kind, sites)
    (folder / "README.md").write_text(model_card(facts), "utf-8")
    write_json(folder / "metadata.json", monai_metadata(facts))
    write_json(folder / "croissant.json", croissant(facts, folder, files_of(folder)))
    lines = [f"{sha256(folder / name)}  {name}\n" for name in files_of(folder)]
    (folder / SUMS).write_text("".join(lines), "utf-8")
    return graphs


def write_model(folder: Path, trained: Trained, detector: Detector) -> None:
    """Weights, which detector they belong to, and how its scans are prepared."""
    state = {name: value.detach().cpu().clone().contiguous() for name, value in detector.state_dict().items()}
    (folder / WEIGHTS).write_bytes(save(state, {"format": "pt"}))  # save_file would let its owner alone read it
    known = {key: trained.lineage[key] for key in KNOWN}
    described = {"name": trained.name, "stage": trained.stage, "model_sha256": trained.digest()}
    write_json(folder / DETECTOR, {**described, **known, "config": detector.config})
    settings = {**trained.lineage["settings"]["preprocessing"]}
    if command := settings.get("mask_command"):
        settings["mask_command"] = without_places(str(command))
    (folder / PREPROCESSING).write_text(yaml.safe_dump(settings, sort_keys=False), "utf-8")


def without_places(command: str) -> str:
    """A command's programs and files by their names, not by where they lie here; also behind an ``=``."""
    words = []
    for word in shlex.split(command):
        option, equals, value = word.rpartition("=")
        named = f"{option}{equals}{Path(value).name if '/' in value else value}"
        plain = named.replace("{", "").replace("}", "")  # of what is filled in, which needs no quotes
        words.append(named if plain == shlex.quote(plain) else shlex.quote(named))
    return " ".join(words)


def copy_calibrations(trained: Trained, target: Path) -> list[str]:
    """Thresholds and statistics of the run's own cohort and of sites, but no name of a scan; returns whose they are.

    Sites of fewer than ``FEW`` scans are left out: their statistics less the run's own would show single scans.

    Raises:
        UserError: some are those of another model.
    """
    source = calibration_folder(trained.folder.path)
    kept: list[str] = []
    small: list[str] = []
    for site in sites_of(trained.folder.path):
        known = load_calibration(trained, site)
        few = site != OWN and known is not None and len(known[1].scores) < FEW
        (small if few else kept).append(site)
    if small:
        say(
            f"calibrations of fewer than {FEW} scans are not exported, because they would show them: {', '.join(small)}"
        )
    if source.is_dir():
        left = (SEEN, f"*.{SEEN}", ".*", *(f"{site}.*" for site in small))
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*left))
    return kept


def prepared_table(trained: Trained, data_dir: Path) -> pd.DataFrame | None:
    """The scans that a detector was made with, without rejected ones; None where they are not at hand, or others."""
    folder = data_dir / trained.lineage["cohort"] / trained.lineage["prepared"]
    if not (folder / "manifest.csv").exists():
        return None
    prepared = PreparedCohort.read(folder, preprocessor_of(trained).judge)
    if not same_data(trained.lineage, data_hashes(prepared)):
        say(f"the scans in {folder} are not those that the detector was trained with: the card does not count them")
        return None
    return prepared.table


def check_volumes(table: pd.DataFrame | None, resolution: int) -> tuple[Tensor, Tensor, str]:
    """``VOLUMES`` volumes ``(N, 1, D, H, W)`` that graphs are checked on and their masks, uint8, and what they are:
    prepared, or random."""
    if table is not None:
        rows = table[table["split"].isin(SPLITS)].head(VOLUMES)
        if len(rows) == VOLUMES:
            images, masks = (np.stack([voxels(path) for path in rows[kind]]) for kind in ("image", "brain_mask"))
            x, brain = torch.from_numpy(images.astype(np.float32)), torch.from_numpy(masks.astype(np.uint8))
            return x[:, None], brain[:, None], "prepared"
    x = torch.rand((VOLUMES, 1, *(resolution,) * 3), generator=torch.Generator().manual_seed(0)) * 2 - 1
    return x, (x > 0).to(torch.uint8), "random"


def metrics_of(trained: Trained) -> dict[str, Any] | None:
    """What the run's evaluation says, where it is about this very model."""
    path = trained.folder.path.parents[1] / "evaluation" / "metrics.json"
    if not path.exists():
        return None
    metrics = json.loads(path.read_text())
    same = metrics["detectors"].get(trained.label, {}).get("model") == trained.digest()
    return metrics if same else None


def files_of(folder: Path) -> list[str]:
    """All files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write_json(path: Path, value: Any) -> None:
    """Write plain values."""
    path.write_text(json.dumps(value, indent=1), "utf-8")


def tell(trained: Trained, out: Path, graphs: list[Graph]) -> None:
    """Say what was written."""
    for graph in graphs:
        difference = f"differs by at most {graph.difference:.1e} on {graph.volumes} volumes" if not graph.reason else ""
        say(f"  {graph.file}: {difference or f'not written, because {graph.reason}'}")
    if load_calibration(trained, OWN) is None:
        say(f"  it has no thresholds and no p-values: {trained.evaluation} makes them; export it again then")
    say(f"exported {trained.lineage['title']} of {trained.source}, {trained.stage}, into {out}")
    say(f"  next: python -m anomaly3d.score model={out} 'scans=[...]'")
