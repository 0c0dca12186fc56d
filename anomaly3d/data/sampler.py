"""Which scans a training step sees."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from anomaly3d.system.processes import place


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Batches of an epoch that is a number of steps, not a pass over the data.

    Training runs over one endless stream of seeded permutations; step, epoch and process say which part of it a batch
    is. So a resumed run goes on with the very batches an undisturbed one would have seen, and P processes see together
    what one process with P times the batch would.

    A batch is a list of pairs: the scan, and its place in the stream, which is the seed of what is drawn for it.
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        passes: dict[int, list[int]] = {}
        for step in range(self.epoch * self.steps, (self.epoch + 1) * self.steps):
            first = (step * self.world + self.rank) * self.batch
            batch = []
            for position in range(first, first + self.batch):
                number, place = divmod(position, self.scans)
                if number not in passes:
                    passes = {n: p for n, p in passes.items() if n >= number - 1}
                    passes[number] = self.permutation(number)
                batch.append((passes[number][place], position))
            yield batch


def dealt(draw: Callable[[int], Tensor], size: int) -> Tensor:
    """This process's ``size`` rows of what ``draw(n)`` draws for the n volumes that all processes train on in a step.

    They are dealt as ``StepSampler`` deals scans, and every process draws all of them, from a generator in the same
    state. So what is drawn for a volume does not depend on the number of processes.
    """
    rank, world = place()
    return draw(world * size)[rank * size :][:size]
