"""Hydra takes sweepers from this package only; what they do is in ``anomaly3d/sweeps.py``."""

from anomaly3d import sweeps


class Grid(sweeps.Grid):
    """``hydra/sweeper=grid``."""


class Optuna(sweeps.Search):
    """``hydra/sweeper=optuna``."""
