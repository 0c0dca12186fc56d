"""``python -m anomaly3d.prepare``: raw scans -> prepared volumes, masks, transforms and verdicts."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import command


@command("prepare")
def main(config: DictConfig) -> int:
    """Prepare the cohort of ``dataset=...`` and print what became of its scans."""
    from anomaly3d.preparation import prepare_from_config
    from anomaly3d.progress import say
    from anomaly3d.report.contact_sheet import write_contact_sheet

    prepared = prepare_from_config(config)
    counts = {v: len(prepared.with_verdict(v)) for v in ("accepted", "rejected", "unreadable")}
    say(f"prepared: {', '.join(f'{n} {v}' for v, n in counts.items())}; see {prepared.folder / 'quality.csv'}")
    say(f"contact sheet: {write_contact_sheet(prepared.folder)}")
    for verdict in prepared.with_verdict("rejected") + prepared.with_verdict("unreadable"):
        say(f"  {verdict.scan_id}: {verdict.verdict}: {verdict.reasons}")
    return 3 if counts["unreadable"] else 0


if __name__ == "__main__":
    sys.exit(main())
