"""``python -m anomaly3d.train +phase=gan``: train one phase; ``-m +phase=gan,encoder,finetune`` all three in a row."""

import sys

from omegaconf import DictConfig

from anomaly3d.cli import command


@command("train")
def main(config: DictConfig) -> int:
    """Train the phase of ``+phase=...`` for the run of ``run=...``."""
    if config.get("phase", {}).get("name") == "fit":
        from anomaly3d.fitting import fit_detector

        return fit_detector(config)
    from anomaly3d.training import train_phase

    return train_phase(config)


if __name__ == "__main__":
    sys.exit(main())
