"""``python -m anomaly3d.prepare``: raw scans -> prepared volumes, masks, transforms and verdicts."""

import sys
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from anomaly3d.cli import Done, command

if TYPE_CHECKING:
    from anomaly3d.preprocessing.cohort import Study


def tell_usual(config: DictConfig) -> None:
    """Say that phantoms are made where nobody has named other scans."""
    from anomaly3d.arguments import key_of
    from anomaly3d.cli import chosen, typed
    from anomaly3d.system.progress import say

    named = any(key_of(text).split(".")[0] in ("dataset", "study") for text in typed())
    if chosen("dataset") == "phantom" and not named:
        say("no dataset=... is named: these are phantoms, heads that a program paints")


def build_study(config: DictConfig) -> "Study":
    """The cohort of ``dataset`` and the preprocessor of ``preprocessing``.

    Raises:
        UserError: either cannot be built.
    """
    from pathlib import Path

    from anomaly3d.cli import plain, refuse_missing_inputs

    refuse_missing_inputs(config)  # before what takes long to import

    from anomaly3d.cohorts.base import Cohort
    from anomaly3d.preprocessing.base import Preprocessor
    from anomaly3d.preprocessing.cohort import Study
    from anomaly3d.system.instantiate import build
    from anomaly3d.system.workers import worker_count

    cohort = build(plain(config.dataset), "dataset config", Cohort)
    preprocessor = build(plain(config.preprocessing), "preprocessing config", Preprocessor)
    return Study(cohort, preprocessor, Path(config.data_dir), worker_count(config.workers, config.scheduler))


@command("prepare")
def main(config: DictConfig) -> Done:
    """Prepare the cohort of ``dataset=...`` and print what became of its scans."""
    from anomaly3d.preprocessing.cohort import tell_read_as
    from anomaly3d.report.contact_sheet import write_contact_sheet
    from anomaly3d.system.progress import say

    study = build_study(config)
    tell_usual(config)
    prepared = study.prepare()
    counts = {v: len(prepared.with_verdict(v)) for v in ("accepted", "rejected", "unreadable")}
    say(f"prepared: {', '.join(f'{n} {v}' for v, n in counts.items())}; see {prepared.folder / 'quality.csv'}")
    say(f"contact sheet: {write_contact_sheet(prepared, study.preprocessor)}")
    for verdict in counts:
        for row in prepared.with_verdict(verdict).to_dict("records"):
            if row["reasons"]:
                say(f"  {row['scan_id']}: {verdict}: {row['reasons']}")
    tell_read_as(prepared)
    return Done(3 if counts["unreadable"] else 0)


if __name__ == "__main__":
    sys.exit(main())
