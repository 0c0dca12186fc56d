"""Who a scan shows, told to a network: age and sex."""

from typing import Literal

import torch
from torch import Tensor, nn

Told = Literal["none", "concat", "film"]

NUMBERS = 4  # age, whether it is known, female, male; all 0: nothing is known


def check_told(told: str) -> None:
    """Refuse another way than those of ``Told``.

    Raises:
        ValueError: names them.
    """
    if told not in ("none", "concat", "film"):
        raise ValueError(f"person must be 'none', 'concat' or 'film', not {told!r}")


def known(x: Tensor, person: Tensor | None) -> Tensor:
    """A row of ``NUMBERS`` for each of ``x (N, ...)``, in its precision; zeros where nothing is said.

    Args:
        person: ``(B, NUMBERS)``; where x are slices, those of a volume follow each other.
    """
    if person is None:
        return x.new_zeros(len(x), NUMBERS)
    return person.to(x).repeat_interleave(len(x) // len(person), 0)


def with_person(x: Tensor, person: Tensor | None) -> Tensor:
    """``(B, C, ...)`` -> ``(B, C + NUMBERS, ...)``: each number as a channel that is the same everywhere."""
    numbers = known(x, person)
    return torch.cat([x, numbers.view(*numbers.shape, *(1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:])], 1)


class FiLM(nn.Module):
    """Each channel scaled and shifted by a linear map of who it is (Perez et al. 2018); unchanged at first.

    Before the last layer of a critic it is the projection of Miyato and Koyama 2018.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.map = nn.Linear(NUMBERS, 2 * channels)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    def forward(self, x: Tensor, person: Tensor | None) -> Tensor:
        """``(B, C, ...)`` and ``(B, NUMBERS)`` -> ``(B, C, ...)``."""
        scale, shift = self.map(known(x, person)).chunk(2, 1)
        shape = (*scale.shape, *(1,) * (x.ndim - 2))
        return x * (1 + scale.view(shape)) + shift.view(shape)
