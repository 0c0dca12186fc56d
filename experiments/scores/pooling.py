"""How far the healthy spread is pooled, with many and with few healthy scans behind it.

``python -m experiments.scores.pooling bench23`` after ``measure`` has scored the run; prints a table.
"""

from dataclasses import replace

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.evaluation.metrics import ranked
from anomaly3d.runs.folder import choose_trained
from anomaly3d.scoring.anomaly_maps import maps_of
from anomaly3d.scoring.inference import prepared_of
from anomaly3d.scoring.writer import read_scores
from experiments.scores.measure import LAYER, Read, markdown, options, ranks, scores

WIDTHS = (3.0, 2.0, 1.5, 1.0, 0.7)  # voxels, sigma
COUNTS = (20, 60)


def main() -> None:
    """AUC of ``peak`` at A and B, and B above A, by width and number of healthy scans."""
    asked = options(__doc__)
    for name in asked.runs:
        run = asked.runs_dir / name
        data = HeadCTDataModule(prepared_of(choose_trained(run, "fanogan"), asked.data_dir), 8)
        data.setup()
        rows = []
        for label in ("fanogan", "pca"):
            out = run / "evaluation" / label
            table = ranked(read_scores(out / "scores.csv"))
            order = {scan.scan_id: scan for scan in maps_of(data.split("test"), out)}
            test = Read.of([order[scan_id] for scan_id in table["scan_id"]])
            held_out = maps_of(data.split("validation"), out / "validation")
            for count in COUNTS:
                healthy = Read.of(held_out[:count])
                for width in WIDTHS:
                    layer = replace(LAYER, pooled=width)
                    found = ranks(table, scores(test, healthy, layer, f"{label}, {count} scans, {width}"))
                    three = [f"{found[key]['value']:.3f}" for key in ("A", "B", "B_above_A")]
                    rows.append([label, str(len(healthy.raw)), f"{width:g}", *three])
        print(f"{name}\n\n{markdown(['detector', 'healthy scans', 'pooled over', 'A', 'B', 'B above A'], rows)}")


if __name__ == "__main__":
    main()
