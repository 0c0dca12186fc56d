"""The one LightningDataModule that every phase and the evaluation share."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from torch import Tensor
from torch.utils.data import Subset

from anomaly3d.data.pseudo_anomalies import KINDS, write_pseudo_anomalies
from anomaly3d.data.sampler import StepSampler
from anomaly3d.data.store import load_stack
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort, Study
from anomaly3d.scans.manifest import PATHS

PSEUDO = "pseudo"  # the split of validation scans with something pasted in, each kind once
MONITORED = "monitored"  # of these one a scan, which training watches
NUMBERS = ("age", "label")  # columns of the manifest that every batch has
SEEDS = 2**32  # of numpy's generators


class HeadCTDataModule(L.LightningDataModule):
    """Prepared volumes by split; a batch is a ``Batch``.

    Args:
        source: a study, prepared by ``prepare_data`` on one process, or a cohort that has been prepared.
        batch: volumes a step and process.
        steps_per_epoch: training steps between two validations.
        learns_from: the split of the training batches.
        reads: columns of the manifest that are in the batch too: volumes (``twin``, ``lesion_mask``), where a scan has
            no such file, zeros; and numbers (``segmentation_ml``).
        transforms: MONAI transforms of a training scan, keys as in ``Batch``; what is random in them is drawn anew for
            each step, and again the same when a run is resumed.
        memory_gb: volumes of a split that take more are memory-mapped; None: half of the free memory.
        synthetic: the scans show no person, so pictures of them may be logged.
        monitored: kinds of pasted anomalies that training watches.
    """

    prepared: PreparedCohort

    def __init__(
        self,
        source: Study | PreparedCohort,
        batch: int,
        steps_per_epoch: int = 1,
        seed: int = 0,
        learns_from: str = "train",
        reads: Sequence[str] = (),
        transforms: Compose | None = None,
        memory_gb: float | None = None,
        synthetic: bool = False,
        monitored: Sequence[str] = KINDS,
    ) -> None:
        super().__init__()
        self.source, self.learns_from, self.reads = source, learns_from, tuple(reads)
        self.batch, self.steps_per_epoch, self.seed = batch, steps_per_epoch, seed
        self.transforms, self.memory_gb, self.synthetic = transforms, memory_gb, synthetic
        self.monitored = tuple(monitored)
        self.predicted = "test"  # the split that ``trainer.predict`` goes through
        self.stacks: dict[tuple[str, str], Tensor] = {}

    def prepare_data(self) -> None:
        """Prepare what is missing of a study; Lightning calls it on one process."""
        if isinstance(self.source, Study):
            self.source.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the tables.

        Raises:
            UserError: a split that ``stage`` needs is empty.
        """
        if not hasattr(self, "prepared"):
            self.prepared = self.source.read() if isinstance(self.source, Study) else self.source
        if stage == "fit":
            self.require(self.learns_from, "validation")

    def split(self, name: str) -> pd.DataFrame:
        """The manifest's rows of one split; those of ``pseudo`` are validation's, with other images and label 1."""
        if name not in (PSEUDO, MONITORED):
            table = self.prepared.table
            return table[table["split"] == name]
        healthy = self.split("validation")
        files = (healthy[column].tolist() for column in ("image", "brain_mask", "scan_id"))
        made = write_pseudo_anomalies(self.prepared.folder, *files)
        if name == MONITORED:
            kinds = self.monitored
            made = made[[kinds[n % len(kinds)] == kind for n, kind in zip(made["number"], made["kind"], strict=True)]]
        named = {"scan_id": made["scan_id"].tolist(), "image": made["image"].tolist(), "lesions": made["kind"].tolist()}
        return healthy.iloc[made["number"].tolist()].assign(**named, label="1", group=PSEUDO)

    def require(self, *splits: str) -> None:
        """Raise a sentence if a split that is needed holds no scan.

        Raises:
            UserError: names the split.
        """
        for name in splits:
            if self.split(name).empty:
                found = ", ".join(f"{n} in {s}" for s, n in self.prepared.table["split"].value_counts().items())
                raise UserError(
                    f"no accepted scan in the {name} split of {self.prepared.folder} ({found or 'none in any'}): see "
                    "quality.csv there, and the column 'split' of the manifest; of a folder of healthy scans say "
                    "dataset.label=0, which draws splits by name: some 30 people fill them all, fewer take other "
                    "dataset.shares"
                )

    def volumes(self, split: str, kind: str = "image") -> Tensor:
        """All volumes of a split ``(N, 1, D, H, W)``, of the files that column ``kind`` names; read once.

        Masks are uint8, the others float32.
        """
        if (split, kind) not in self.stacks:
            dtype = np.uint8 if kind.endswith("_mask") else np.float32
            cache = self.prepared.folder / "memory-mapped"
            what = split if kind == "image" else f"{split} {kind}"
            paths, beside = self.split(split)[kind].tolist(), self.trainer.num_devices if self.trainer else 1
            self.stacks[split, kind] = load_stack(paths, cache, self.memory_gb, what, dtype, beside)
        return self.stacks[split, kind]

    def dataset(self, split: str, transforms: Compose | None = None) -> "Scans":
        """The scans of a split, in its manifest's order."""
        stacks = {"image": self.volumes(split), "brain": self.volumes(split, "brain_mask")}
        stacks |= {kind: self.volumes(split, kind) for kind in self.reads if kind in PATHS}
        numbers = (*NUMBERS, *(kind for kind in self.reads if kind not in PATHS))
        if split == "validation":
            stacks["pseudo"] = self.volumes(MONITORED)
        return Scans(self.split(split), stacks, transforms, self.seed, numbers)

    def train_dataloader(self) -> DataLoader:
        """Scans of the split ``learns_from`` in steps."""
        data = self.dataset(self.learns_from, self.transforms)
        sampler = StepSampler(len(data), self.batch, self.steps_per_epoch, self.seed, *self.place())
        return DataLoader(data, batch_sampler=sampler, generator=torch.Generator())  # else it draws from torch's

    def val_dataloader(self) -> DataLoader:
        """Healthy validation scans, each process its share."""
        mine = Subset(self.dataset("validation"), self.share("validation"))
        return DataLoader(mine, batch_size=self.batch, generator=torch.Generator())

    def predict_dataloader(self) -> DataLoader:
        """The scans of the split ``predicted``, each once over all processes, in batches of one size.

        The last batch is filled up with its last scan: a scan's numbers depend, in their last digits, on the size of
        its batch, and must not depend on the number of processes. Who gathers them takes each ``scan_id`` once.
        """
        mine = self.share(self.predicted)
        mine += mine[-1:] * (-len(mine) % self.batch)
        return DataLoader(Subset(self.dataset(self.predicted), mine), batch_size=self.batch)

    def place(self) -> tuple[int, int]:
        """This process's number, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def share(self, split: str) -> list[int]:
        """Which scans of a split belong to this process: of P, each takes every P-th.

        Lightning wants a scan for each process, so where there are fewer the first one is taken twice.
        """
        rank, world = self.place()
        return list(range(rank, len(self.split(split)), world)) or [0]


def data_of(trainer: L.Trainer) -> HeadCTDataModule:
    """The data module that a trainer works on."""
    return trainer.datamodule  # type: ignore[attr-defined]


class Scans(Dataset):
    """Items of a ``Batch``, from a manifest's rows and the stacks of their volumes.

    An item's number may come with a seed for what its transforms draw.
    """

    def __init__(
        self,
        rows: pd.DataFrame,
        stacks: dict[str, Tensor],
        transforms: Compose | None,
        seed: int,
        numbers: Sequence[str] = NUMBERS,
    ) -> None:
        known = {n: pd.to_numeric(rows[n], errors="coerce").to_numpy(np.float32) for n in numbers}
        super().__init__(rows[["scan_id", "sex"]].assign(**known).to_dict("records"), transforms)
        self.stacks, self.seed = stacks, seed

    def __getitem__(self, number: Any) -> Any:
        place, draw = number if isinstance(number, tuple) else (number, 0)
        scan = {**self.data[place], **{kind: stack[place] for kind, stack in self.stacks.items()}}
        if not self.transform.transforms:
            return scan
        self.transform.set_random_state((self.seed * 1_000_003 + draw) % SEEDS)
        return self.transform(scan)
