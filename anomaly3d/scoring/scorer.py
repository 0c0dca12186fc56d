"""A trained detector in Python: volumes or a scan in, findings, p-value and maps out, nothing written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.errors import UnreadableScan, UserError
from anomaly3d.phases.base import Predicting, freeze
from anomaly3d.preprocessing.base import Companions, Prepared, Preprocessor
from anomaly3d.preprocessing.scan import digest_of
from anomaly3d.runs.exported import read_exported
from anomaly3d.runs.folder import Trained, choose_trained
from anomaly3d.scans.manifest import wrong_age
from anomaly3d.scans.readers import read_image
from anomaly3d.scoring.anomaly_maps import RESIDUAL, Healthy, RawMaps, standardised_maps
from anomaly3d.scoring.calibration import OWN, Calibration, load_calibration
from anomaly3d.scoring.clusters import own_grid_clusters
from anomaly3d.scoring.combination import with_combined
from anomaly3d.scoring.inference import preprocessor_of, require_command, round_weights
from anomaly3d.scoring.learned_from import read_seen
from anomaly3d.scoring.scan_scores import map_scores, part_scores
from anomaly3d.scoring.way_back import Found, own_grid_maps
from anomaly3d.system.device import fast_bfloat16

Volumes = np.ndarray | Tensor | Sequence[np.ndarray]


@dataclass(frozen=True)
class Result:
    """What is known of a scan.

    ``verdict`` is accepted, rejected or unreadable, ``reasons`` say why. ``scores`` are the detector's own. ``score``
    is the one called ``score_name`` that thresholds belong to, ``p_value`` how rare it is among healthy scans,
    ``flagged`` whether it reaches the threshold; None where the run has no calibration or too small a one, and of
    rejected scans: no healthy scans like them were measured. Of a scan that the run learned from ``learned_in`` says as
    one of which split, and it has neither. ``maps`` are images on the scan's own grid: ``input``,
    ``reconstruction``, ``residual`` in the preprocessing's unit, ``brain_mask``, the detector's own maps, and where the
    run has a calibration ``standardised``, in units of the spread of healthy scans, and of its clusters ``clusters``
    and ``anomaly_mask``; ``clusters`` has a row for each (``scoring.clusters``).
    """

    verdict: str
    reasons: str = ""
    quality: dict[str, float] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    score_name: str = "total"
    score: float | None = None
    p_value: float | None = None
    flagged: bool | None = None
    maps: dict[str, nib.nifti1.Nifti1Image] = field(default_factory=dict)
    clusters: pd.DataFrame | None = None
    learned_in: str = ""


class Scorer:
    """A detector with the preprocessing of its training data and its calibration.

    Args:
        known: of ``load_calibration``.
        seen: the split of each scan that the run learned from, by the digest of its voxels.
    """

    def __init__(
        self,
        detector: Detector,
        preprocessor: Preprocessor,
        known: tuple[Healthy, Calibration] | None,
        seen: Mapping[str, str] | None = None,
    ) -> None:
        self.preprocessor, self.known, self.seen = preprocessor, known, seen or {}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.rounded = fast_bfloat16("auto")
        self.module = Predicting(detector)
        freeze(detector)
        round_weights(detector, "bf16-mixed" if self.rounded else "32-true")
        self.module.to(self.device)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        detector: str | None = None,
        site: str = OWN,
        data_dir: str | Path = "data",
        mask_command: str | None = None,
    ) -> Self:
        """The most trained stage of a detector of ``runs/NAME``.

        Args:
            detector: its name; None: the one that the run's evaluation is about, else the method trained first.
            site: whose threshold.
            data_dir: where the preprocessor keeps what all scans share.
            mask_command: the skull stripper of the run's scans, if it is not the built-in one.

        Raises:
            UserError: no such run, detector or site, the run's scans had another skull stripper, or the detector reads
                more than a scan.
        """
        return cls.of(choose_trained(Path(run), detector), site, Path(data_dir), mask_command)

    @classmethod
    def from_folder(
        cls, folder: str | Path, site: str = OWN, data_dir: str | Path = "data", mask_command: str | None = None
    ) -> Self:
        """A model that ``anomaly3d.export`` has written; the other arguments are those of ``from_run``.

        Raises:
            UserError: as ``from_run``, or a file is not as it was exported.
        """
        return cls.of(read_exported(Path(folder)), site, Path(data_dir), mask_command)

    @classmethod
    def of(cls, trained: Trained, site: str, data_dir: Path, mask_command: str | None) -> Self:
        """A trained detector; arguments and errors are those of ``from_run``."""
        require_command(trained, mask_command)
        if reads := trained.lineage["reads"]:
            raise UserError(
                f"{trained.lineage['title']} also needs the column {reads[0]} of a manifest: use 'python -m "
                "anomaly3d.score' with manifest=..."
            )
        preprocessor = preprocessor_of(trained)
        preprocessor.setup(data_dir)
        table = read_seen(trained, site)
        seen = {content: split for content, split in zip(table["content"], table["split"], strict=True) if content}
        return cls(trained.load(), preprocessor, load_calibration(trained, site), seen)

    def examine(
        self,
        volumes: Volumes,
        brains: Volumes | None = None,
        ages: Sequence[float] | None = None,
        sexes: Sequence[str] | None = None,
    ) -> Findings:
        """Findings on prepared volumes ``(B, 1, D, H, W)``, ``(B, D, H, W)`` or ``(D, H, W)`` in [-1, 1].

        Args:
            brains: their brain masks, which methods that judge the brain alone cannot do without.
            ages: in years, NaN where unknown, and ``sexes`` (``F``, ``M``, empty), for networks that are told them.
        """
        x = self.stack(volumes)
        batch: Batch = {"image": x, "scan_id": [str(i) for i in range(len(x))]}
        if brains is not None:
            batch["brain"] = self.stack(brains).to(torch.uint8)
        years = [np.nan] * len(x) if ages is None else ages
        batch["age"] = torch.tensor(years, dtype=torch.float32, device=self.device)
        batch["sex"] = [""] * len(x) if sexes is None else list(sexes)
        gradients = self.module.detector.needs_gradients
        with torch.inference_mode(not gradients), torch.autocast(self.device.type, torch.bfloat16, self.rounded):
            return self.module.predict_step(batch, 0)

    def stack(self, volumes: Volumes) -> Tensor:
        """Volumes in any of the forms of ``examine`` as ``(B, 1, D, H, W)`` float32 on the device."""
        x = torch.as_tensor(np.asarray(volumes), dtype=torch.float32, device=self.device)
        return x.reshape(-1, 1, *x.shape[-3:])

    def prepare(self, path: str | Path) -> Prepared:
        """A scan as the detector's training data were prepared.

        Raises:
            UnreadableScan: it cannot be.
        """
        return self.preprocessor.prepare(self.preprocessor.read(Path(path)), Companions())

    def score(self, path: str | Path, age: float | str | None = None, sex: str = "") -> Result:
        """A scan (NIfTI file or DICOM folder) from reading to p-value and maps.

        What is wrong with a scan, also that there is no such file, is in the result's verdict and reasons.

        Args:
            age: in years, if it is known; a number or text. It counts where the run's healthy spread follows age
                (``evaluate by_age=true``); a scan of unknown age has no p-value then.
            sex: ``F``, ``M``, or empty. It and the age count where the networks are told them (``model.person``).

        Raises:
            UserError: an age or a sex that is none.
        """
        written = "" if age is None or age != age else str(age)  # NaN is not itself
        if fault := wrong_age(written):
            raise UserError(fault)
        age = float(written) if written else None
        if sex not in ("F", "M", ""):
            raise UserError(f"sex must be 'F', 'M' or empty, not {sex!r}")
        try:
            scan = self.preprocessor.read(Path(path))
            prepared = self.preprocessor.prepare(scan, Companions())
        except UnreadableScan as error:
            return Result("unreadable", str(error))
        reasons = self.preprocessor.judge(prepared.quality)
        verdict = "rejected" if reasons else "accepted"
        if reasons and not prepared.brain_mask.any():
            return Result(verdict, "; ".join(reasons), prepared.quality)
        found = self.examine(prepared.image, prepared.brain_mask, [np.nan if age is None else age], [sex])
        scores = {name: float(value[0]) for name, value in found.scores.items()}
        one = on_one_grid(prepared, found)
        values = one.maps if one.reconstruction is None else {RESIDUAL: one.image - one.reconstruction, **one.maps}
        raw = RawMaps(values, one.brain > 0, age, one.image)
        name, score, p, flagged = self.judge(scores, raw)
        learned_in = self.seen.get(digest_of(scan, self.preprocessor.stored), "") if self.seen else ""
        ageless = self.known is not None and self.known[0].ageing is not None and age is None
        outside = reasons or ageless or learned_in
        if outside:
            p = flagged = None
        if self.known:
            one = replace(one, maps=one.maps | standardised_maps(raw, self.known[0]))
        original = read_image(Path(path))
        maps = own_grid_maps(original, one, self.preprocessor)
        known = self.known and (self.known[1].without_clusters() if outside else self.known[1])
        clusters = own_grid_clusters(original, one, maps, known) if known else None
        if clusters:
            maps |= {"clusters": clusters.labels, "anomaly_mask": clusters.mask}
        table = clusters.table if clusters else None
        told = (verdict, "; ".join(reasons), prepared.quality, scores, name, score, p, flagged, maps, table)
        return Result(*told, learned_in)

    def judge(self, scores: dict[str, float], raw: RawMaps) -> tuple[str, float | None, float | None, bool | None]:
        """Name and value of the score that thresholds belong to, its p-value, and whether it is flagged."""
        if self.known is None:
            return "total", scores["total"], None, None
        healthy, calibration = self.known
        every = part_scores(pd.DataFrame([scores]), healthy).assign(**map_scores(raw, healthy))
        score = float(with_combined(every, healthy.reference)[calibration.score].iloc[0])
        p = float(calibration.p_values(np.array([score]))[0])
        flagged = bool(score >= calibration.threshold) if calibration.possible else None
        return calibration.score, score, p, flagged


def on_one_grid(prepared: Prepared, found: Findings) -> Found:
    """A prepared scan with the findings on it, which are a batch of one."""
    return Found(
        prepared.image,
        prepared.brain_mask,
        None if found.reconstruction is None else found.reconstruction[0, 0].numpy(),
        {name: volume[0, 0].numpy() for name, volume in found.maps.items()},
        prepared.affine,
        prepared.mni_to_scan,
    )
