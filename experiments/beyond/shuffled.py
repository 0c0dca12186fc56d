"""The control of networks that are told age and sex: training scans that are told as somebody else's."""

from typing import Any

import pandas as pd
from monai.transforms import RandomizableTransform

from anomaly3d.errors import UserError


class Shuffled(RandomizableTransform):
    """A training scan with age and sex of a training scan that is drawn at each step.

    Args:
        manifest: of the prepared cohort.
    """

    def __init__(self, manifest: str) -> None:
        super().__init__()
        table = pd.read_csv(manifest, dtype=str, keep_default_na=False)
        people = table.loc[table["split"] == "train", ["age", "sex"]]
        if people.empty:
            raise UserError(f"{manifest} has no training scan")
        self.ages = pd.to_numeric(people["age"], errors="coerce").to_numpy("float32")
        self.sexes = people["sex"].tolist()

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """``data`` with another ``age`` and ``sex``."""
        place = int(self.R.randint(len(self.ages)))
        return {**data, "age": self.ages[place], "sex": self.sexes[place]}
