from types import SimpleNamespace

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.detectors.controls import Twin
from anomaly3d.phases.fit import FitPhase
from anomaly3d.training.callbacks.pictures import LogPictures, middle_planes
from tests.writers import noise_cohort


class Kept(WandbLogger):
    """Keeps images in place of W&B."""

    images = True

    def __init__(self):
        self.kept = {}

    def log_image(self, key, images):
        self.kept[key] = images


def test_pictures_are_made_from_all_that_a_method_reads(tmp_path):
    """The twin of each scan here is the scan before it."""
    prepared = noise_cohort(tmp_path, 8, validation=3)
    prepared.table["twin"] = np.roll(prepared.table["image"], 1)
    data = HeadCTDataModule(prepared, 2, reads=Twin.reads)
    data.setup()
    logger = Kept()
    trainer = SimpleNamespace(logger=logger, is_global_zero=True, datamodule=data)
    LogPictures(2).on_validation_epoch_end(trainer, FitPhase(Twin(5)))
    first, second = logger.kept["fit/reconstructions"]
    x, spacing = data.volumes("validation")[:, 0], (2, 3, 5)
    volumes = {name: [x[n], x[n - 1], (x[n] - x[n - 1]).abs() - 1] for n, name in enumerate(("first", "second"))}
    for picture, name in ((first, "first"), (second, "second")):
        expected = np.concatenate([middle_planes(volume, np.array(spacing)) for volume in volumes[name]])
        np.testing.assert_array_equal(picture, expected)
