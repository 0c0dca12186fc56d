"""The one LightningDataModule that every phase and the evaluation share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from monai.data import DataLoader, Dataset
from torch import Tensor
from torch.utils.data import Sampler, Subset

from anomaly3d.cohorts.manifest import read_manifest
from anomaly3d.errors import UserError
from anomaly3d.pseudo_anomalies import write_pseudo_anomalies
from anomaly3d.volume_store import load_stack

PSEUDO = "pseudo"  # the split of validation scans with something pasted in


class StepSampler(Sampler[list[int]]):
    """Batches of an epoch that is a number of steps, not a pass over the data.

    Training runs over one endless stream of seeded permutations; step, epoch and process say which part of it a batch
    is. So a resumed run goes on with the very batches an undisturbed one would have seen, and P processes see together
    what one process with P times the batch would.
    """

    def __init__(self, scans: int, batch: int, steps: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.scans, self.batch, self.steps, self.seed = scans, batch, steps, seed
        self.rank, self.world = rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def permutation(self, number: int) -> list[int]:
        """The order of the ``number``-th pass over the scans."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        return torch.randperm(self.scans, generator=generator).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        passes: dict[int, list[int]] = {}
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            first = (step * self.world + self.rank) * self.batch
            batch = []
            for position in range(first, first + self.batch):
                number, place = divmod(position, self.scans)
                if number not in passes:
                    passes = {n: p for n, p in passes.items() if n >= number - 1}
                    passes[number] = self.permutation(number)
                batch.append(passes[number][place])
            yield batch


class HeadCTDataModule(L.LightningDataModule):
    """Prepared volumes by split. A batch is a dictionary: ``image (B, 1, D, H, W)`` float32 in [-1, 1], ``scan_id``.

    Where every scan of a split has a lesion-free twin, ``twin`` is in the batch too; validation batches have
    ``pseudo``, the same volumes with something pasted in.

    Args:
        folder: what ``prepare`` wrote for a cohort.
        batch: volumes a step and process.
        steps_per_epoch: steps between two validations.
        tested: the split that ``trainer.test`` goes through.
        memory_gb: volumes of a split that take more are memory-mapped; None: half of the free memory.
    """

    def __init__(
        self,
        folder: Path,
        batch: int,
        steps_per_epoch: int,
        seed: int = 0,
        tested: str = "test",
        memory_gb: float | None = None,
    ) -> None:
        super().__init__()
        self.tested, self.memory_gb = tested, memory_gb
        self.batch, self.steps_per_epoch, self.seed = batch, steps_per_epoch, seed
        self.table = read_manifest(folder / "manifest.csv")
        self.folder = folder
        self.stacks: dict[tuple[str, str], Tensor] = {}

    def split(self, name: str) -> pd.DataFrame:
        """The manifest's rows of one split; those of ``pseudo`` are validation's, with other images and label 1."""
        if name != PSEUDO:
            return self.table[self.table["split"] == name]
        healthy = self.split("validation")
        images = write_pseudo_anomalies(self.folder, healthy["image"].tolist(), healthy["scan_id"].tolist())
        return healthy.assign(image=images, label="1", group=PSEUDO, twin="")

    def require(self, *splits: str) -> None:
        """Raise a sentence if a split that is needed holds no scan.

        Raises:
            UserError: names the split.
        """
        for name in splits:
            if self.split(name).empty:
                raise UserError(
                    f"no accepted scan in the {name} split of {self.folder}: see quality.csv there, and the column "
                    "'split' of the manifest"
                )

    def volumes(self, split: str, kind: str = "image") -> Tensor:
        """All volumes of a split ``(N, 1, D, H, W)``: its images, or their twins; read once."""
        if (split, kind) not in self.stacks:
            paths, cache = self.split(split)[kind].tolist(), self.folder / "memory-mapped"
            self.stacks[split, kind] = load_stack(paths, cache, self.memory_gb, split)
        return self.stacks[split, kind]

    def dataset(self, split: str) -> Dataset:
        """The items of a split, as described above."""
        rows = self.split(split)
        stacks = {"image": self.volumes(split)}
        if len(rows) and (rows["twin"] != "").all():
            stacks["twin"] = self.volumes(split, "twin")
        if split == "validation":
            stacks["pseudo"] = self.volumes(PSEUDO)
        scan_ids = rows["scan_id"].tolist()

        def item(number: int) -> dict[str, Any]:
            return {"scan_id": scan_ids[number], **{kind: stack[number] for kind, stack in stacks.items()}}

        return Dataset(range(len(rows)), item)

    def train_dataloader(self) -> DataLoader:
        """Healthy training scans in steps."""
        data = self.dataset("train")
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = StepSampler(len(data), self.batch, self.steps_per_epoch, self.seed, rank, world)
        return DataLoader(data, batch_sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Healthy validation scans, each process its share."""
        data, mine = self.share("validation")
        return DataLoader(Subset(data, mine), batch_size=self.batch)

    def test_dataloader(self) -> DataLoader:
        """The scans of the split ``tested``, each once over all processes, in batches of one size.

        The last batch is filled up with its last scan: a scan's numbers depend, in their last digits, on the size of
        its batch, and must not depend on the number of processes. Who gathers them takes each ``scan_id`` once.
        """
        data, mine = self.share(self.tested)
        batches = [mine[i : i + self.batch] for i in range(0, len(mine), self.batch)]
        return DataLoader(data, batch_sampler=[b + b[-1:] * (self.batch - len(b)) for b in batches])

    def share(self, split: str) -> tuple[Any, list[int]]:
        """A split in its manifest's order, and the places of this process: of P, each takes every P-th scan.

        Lightning wants a scan for each process, so where there are fewer the first one is taken twice.
        """
        data: Any = self.dataset(split)
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return data, list(range(rank, len(data), world)) or [0]
