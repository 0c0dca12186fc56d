"""Several methods as one: trained together, each by its own loss, and each keeps its own map.

What their maps and scores say is put together where healthy scans say how rare each is: ``scoring/combination.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.data.pseudo_anomalies import KINDS
from anomaly3d.detectors.base import Detector, Findings, build_detector


class Ensemble(Detector):
    """Members in one phase; the first one with a reconstruction shows it.

    Args:
        members: by name, configs as in ``conf/detector`` of methods without phases of their own.
        combined: scores that the score layer puts together as the ensemble's.

    Raises:
        ValueError: fewer than two members, or one that has phases of its own, is shown lesions, reads more than the
            scan, or scores below 0.
    """

    title = "ensemble"

    def __init__(self, members: Mapping[str, Mapping[str, Any]], combined: Sequence[str]) -> None:
        super().__init__()
        made = {name: build_detector(config["module"]) for name, config in members.items()}
        if len(made) < 2:
            raise ValueError(f"an ensemble has two members or more, not {len(made)}")
        for name, member in made.items():
            if not member.fits and type(member).loss is Detector.loss:
                raise ValueError(f"{name} cannot be a member: it has phases of its own")
            if member.signed:
                raise ValueError(f"{name} cannot be a member: its score may be negative, and has no geometric mean")
            if member.learns_from != "train" or member.taught_with or member.reads:
                raise ValueError(f"{name} cannot be a member: it is shown more than healthy scans")
        self.members = nn.ModuleDict(made)
        self.combined = tuple(combined)
        self.needs_gradients = any(member.needs_gradients for member in made.values())
        self.fewest = max(member.fewest for member in made.values())

    def each(self) -> list[tuple[str, Detector]]:
        """The members by name."""
        return [(name, member) for name, member in self.members.items() if isinstance(member, Detector)]

    @property
    def judged_by(self) -> tuple[str, ...]:
        """What no member has learned."""
        return tuple(kind for kind in KINDS if all(kind in member.judged_by for _, member in self.each()))

    @property
    def fits(self) -> bool:
        return any(member.fits for _, member in self.each())

    @property
    def fits_at_once(self) -> bool:
        return all(member.fits_at_once for _, member in self.each())

    def fit(self, train: Tensor, validation: Tensor, brains: Tensor) -> None:
        for _, member in self.each():
            if member.fits_at_once:
                member.fit(train, validation, brains)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """The sum of the members' losses: they share no weight, so each is trained as if it were alone."""
        losses = {name: member.loss(batch)["loss"] for name, member in self.each() if not member.fits_at_once}
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def examine(self, batch: Batch) -> Findings:
        """``total``: the geometric mean of the members' scores, whatever their units; each under its member's name.

        Maps beside the shown residual are the others' residuals, by member, and the members' own, ``MEMBER_MAP``.
        """
        x, shown = batch["image"], None
        scores: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        for name, member in self.each():
            found = member.examine(batch)
            scores[name] = found.scores["total"].double()
            if found.reconstruction is not None and shown is not None:
                maps[name] = x - found.reconstruction
            shown = found.reconstruction if shown is None else shown
            maps |= {f"{name}_{own}": values for own, values in found.maps.items()}
        logs = torch.stack(list(scores.values())).clamp_min(torch.finfo(torch.float64).tiny).log()
        return Findings({"total": logs.mean(0).exp(), **scores}, shown, maps)
