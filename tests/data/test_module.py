import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from monai.transforms import Compose, RandFlipd, RandShiftIntensityd
from omegaconf import OmegaConf

from anomaly3d.cli import CONF
from anomaly3d.data.augmentation import RandIntensityInBraind
from anomaly3d.data.module import HeadCTDataModule
from anomaly3d.errors import UserError
from anomaly3d.preprocessing.cohort import PreparedCohort
from anomaly3d.scans.manifest import OPTIONAL

SHAPE = (6, 5, 4)


@pytest.fixture
def prepared(tmp_path):
    """Four training, two validation and three test scans, the last without an age; one test scan has a lesion mask."""
    rng = np.random.default_rng(0)
    rows = []
    for number, split in enumerate(["train"] * 4 + ["validation"] * 2 + ["test"] * 3):
        row = {"scan_id": f"s{number}", "subject_id": f"p{number}", "label": "0", "split": split, "sex": "F"}
        row |= {"age": "" if number == 8 else str(40 + number)}
        for kind in ("image", "brain_mask", "lesion_mask"):
            data = rng.uniform(-1, 1, SHAPE).astype(np.float32) if kind == "image" else rng.random(SHAPE) < 0.5
            path = tmp_path / kind / f"s{number}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(data.astype(np.float32 if kind == "image" else np.uint8), np.eye(4)), path)
            row[kind] = str(path) if kind != "lesion_mask" or number == 7 else ""
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=[*rows[0], *(c for c in OPTIONAL if c not in rows[0])], fill_value="")
    return PreparedCohort(tmp_path, table, pd.DataFrame())


def module(prepared, batch=2, **more):
    data = HeadCTDataModule(prepared, batch, 3, seed=5, **more)
    data.setup()
    return data


def test_a_batch_holds_what_is_known_of_its_scans(prepared):
    data = module(prepared, reads=("lesion_mask",))
    batches = list(data.predict_dataloader())
    first, last = batches
    assert first["scan_id"] == ["s6", "s7"]
    assert last["scan_id"] == ["s8", "s8"]  # filled up to the size of a batch
    assert first["image"].shape == first["brain"].shape == (2, 1, *SHAPE)
    assert first["age"].tolist() == [46, 47]
    assert math.isnan(last["age"][0])
    assert first["sex"] == ["F", "F"]
    assert first["lesion_mask"][0].sum() == 0
    stored = nib.load(prepared.folder / "lesion_mask" / "s7.nii.gz").get_fdata()
    np.testing.assert_array_equal(first["lesion_mask"][1, 0], stored)
    np.testing.assert_array_equal(first["brain"][0, 0], nib.load(prepared.folder / "brain_mask/s6.nii.gz").get_fdata())


def test_a_method_that_does_not_ask_for_the_truth_does_not_get_it(prepared):
    batch = next(iter(module(prepared).predict_dataloader()))
    assert set(batch) == {"scan_id", "image", "brain", "age", "sex", "label"}


def test_validation_has_the_same_scans_with_something_pasted_in(prepared):
    batch = next(iter(module(prepared).val_dataloader()))
    assert batch["scan_id"] == ["s4", "s5"]
    assert (batch["pseudo"] != batch["image"]).flatten(1).any(1).all()


def shift_and_flip():
    return Compose(
        [RandFlipd(["image", "brain"], prob=0.5, spatial_axis=0), RandShiftIntensityd(["image"], 0.3, prob=1)]
    )


def images(data, epoch=0):
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return torch.stack([batch["image"] for batch in loader])


def test_transforms_are_drawn_anew_each_step_and_again_the_same_in_a_resumed_run(prepared):
    plain, changed = images(module(prepared)), images(module(prepared, transforms=shift_and_flip()))
    assert (changed != plain).flatten(2).any(2).all()
    assert torch.equal(changed, images(module(prepared, transforms=shift_and_flip())))
    resumed = module(prepared, transforms=shift_and_flip())
    assert torch.equal(images(resumed, epoch=1), images(module(prepared, transforms=shift_and_flip()), epoch=1))
    assert not torch.equal(images(resumed, epoch=1), changed)
    shifts = {round(float(v), 4) for v in (changed.flatten(2).mean(2) - plain.flatten(2).mean(2)).ravel()}
    assert len(shifts) == 6  # two scans in each of three steps, each drawn for itself


def test_what_data_augmented_mirrors_it_mirrors_with_all_masks(prepared):
    """A supervised control would learn from lesions of the other side."""
    transforms = instantiate(OmegaConf.load(Path(CONF) / "data" / "augmented.yaml").transforms)
    sides = set()
    for epoch in range(8):
        plain, changed = (last_seen(prepared, "s7", epoch, each) for each in (None, transforms))
        mirrored = not torch.equal(changed["brain"], plain["brain"])
        for kind in ("brain", "lesion_mask"):
            assert torch.equal(changed[kind], plain[kind].flip(1) if mirrored else plain[kind])
        sides.add(mirrored)
    assert sides == {True, False}


def test_intensities_change_inside_the_brain_alone():
    x = torch.linspace(-1, 1, 60).view(1, 3, 4, 5)
    brain = (torch.arange(60).view(1, 3, 4, 5) % 3 > 0).byte()
    change = RandIntensityInBraind(["image"], "brain", shift=0.5, scale=0.2, prob=1.0)
    change.set_random_state(3)
    drawn = np.random.RandomState(3)
    drawn.rand()
    factor, offset = 1 + drawn.uniform(-0.2, 0.2), drawn.uniform(-0.5, 0.5)
    found = change({"image": x, "brain": brain})
    torch.testing.assert_close(found["image"], torch.where(brain > 0, (x * factor + offset).clamp(-1, 1), x))
    never = RandIntensityInBraind(["image"], "brain", shift=0.5, scale=0.2, prob=0.0)
    assert torch.equal(never({"image": x, "brain": brain})["image"], x)


def last_seen(prepared, scan_id, epoch, transforms):
    """Masks of a scan of the test split in the last step that takes it."""
    data = module(prepared, learns_from="test", reads=("lesion_mask",), transforms=transforms)
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    (*_, found) = [batch for batch in loader if scan_id in batch["scan_id"]]
    return {kind: found[kind][found["scan_id"].index(scan_id)] for kind in ("brain", "lesion_mask")}


def test_validation_and_test_scans_are_not_transformed(prepared):
    data = module(prepared, transforms=shift_and_flip())
    for loader, split in ((data.val_dataloader(), "validation"), (data.predict_dataloader(), "test")):
        batch = next(iter(loader))
        assert torch.equal(batch["image"], data.volumes(split)[:2])


def test_an_empty_split_is_named(prepared):
    empty = PreparedCohort(prepared.folder, prepared.table[prepared.table["split"] != "validation"], prepared.quality)
    with pytest.raises(UserError, match="validation"):
        HeadCTDataModule(empty, 2).setup("fit")
