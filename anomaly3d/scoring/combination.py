"""Several scores as one, by how rare each of them is among healthy scans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import norm

from anomaly3d.errors import UserError
from anomaly3d.statistics.conformal import p_values, weights_of

COMBINED = "combined"


@dataclass(frozen=True)
class Reference:
    """Scores of the healthy scans that say what is usual.

    ``scores (N,)`` by name; ``weights (N,)`` are ``weights_of`` the scans' ``subjects (N,)``, which are known while an
    evaluation learns, and not kept.
    """

    scores: dict[str, np.ndarray]
    weights: np.ndarray
    subjects: tuple[str, ...] = ()

    @classmethod
    def measure(cls, table: pd.DataFrame, names: Sequence[str]) -> "Reference":
        """Of healthy scans, from the columns ``names`` of their table.

        Raises:
            UserError: there is no such score.
        """
        for name in names:
            if name not in table or not pd.api.types.is_float_dtype(table[name]):
                there = ", ".join(str(c) for c in table if pd.api.types.is_float_dtype(table[c]))
                raise UserError(f"detector.module.combined: there is no score {name!r}; there are {there}")
        scores = {name: table[name].to_numpy(float) for name in names}
        return cls(scores, weights_of(table["subject_id"].to_numpy()), tuple(table["subject_id"]))

    def without(self, subject: str) -> "Reference":
        """The scans of all others."""
        kept = np.array(self.subjects) != subject
        return Reference({name: values[kept] for name, values in self.scores.items()}, self.weights[kept])

    def combined(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Stouffer's sum over K scores ``(M,)`` each, ``(M,)``: sum of Phi^-1(1 - p) over the square root of K.

        Stouffer et al. 1949, with equal weights. p is conformal, among the healthy scans, moved by half a step: it is
        below 1 then, and what no healthy scan reaches counts by how many there are.
        """
        half = 0.5 / (1 + self.weights.sum())
        p = [p_values(usual, np.asarray(scores[name], float), self.weights) for name, usual in self.scores.items()]
        return np.sum([norm.isf(each - half) for each in p], axis=0) / np.sqrt(len(p))


def with_combined(table: pd.DataFrame, reference: Reference | None) -> pd.DataFrame:
    """``table`` with the column ``COMBINED``, where there is a reference; whoever is in it is judged by the others."""
    if reference is None:
        return table
    scores = {name: table[name].to_numpy(float) for name in reference.scores}
    found = reference.combined(scores)
    for subject in set(reference.subjects):
        own = (table["subject_id"] == subject).to_numpy()
        found[own] = reference.without(subject).combined({name: values[own] for name, values in scores.items()})
    return table.assign(**{COMBINED: found})
