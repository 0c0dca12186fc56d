"""``python -m anomaly3d.export run=study out=folder``: a trained detector as a folder that scores without its run."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from anomaly3d.cli import Done, chosen, command
from anomaly3d.errors import UserError


@command("export")
def main(config: DictConfig) -> Done:
    """Write weights, graphs, thresholds, model card and digests of a detector of ``run=...`` into ``out=...``."""
    from anomaly3d.runs.folder import choose_trained

    trained = choose_trained(Path(config.runs_dir) / config.run, chosen("detector"))  # before what takes long to import
    if not config.out:
        raise UserError("out=FOLDER is missing: where the exported model goes")

    from anomaly3d.bundle.write import Export, export_detector, tell
    from anomaly3d.system.quiet import hush

    hush()
    wanted = Export(Path(config.out), Path(config.data_dir), config.onnx)
    tell(trained, wanted.out, export_detector(trained, wanted))
    return Done()


if __name__ == "__main__":
    sys.exit(main())
