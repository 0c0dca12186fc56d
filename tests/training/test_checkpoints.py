"""Which state is the best, wherever the run lies now."""

from functools import partial

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from anomaly3d.training.callbacks.checkpoints import KeepBest

OF = {"filename": "best", "monitor": "fit/val_loss", "mode": "min", "enable_version_counter": False}


def test_the_best_state_is_known_in_a_folder_that_was_moved(tmp_path):
    made = partial(KeepBest, **OF)
    before, after = made(tmp_path / "a"), made(tmp_path / "b")
    score, path = torch.tensor(0.3), str(tmp_path / "a" / "best.ckpt")
    before.best_model_score, before.best_k_models, before.kth_value = score, {path: score}, score
    before.best_model_path = before.kth_best_model_path = path
    after.load_state_dict(before.state_dict())
    here = str(tmp_path / "b" / "best.ckpt")
    assert (after.best_model_path, after.kth_best_model_path, after.best_k_models) == (here, here, {here: score})
    assert (after.best_model_score, after.kth_value, after.dirpath) == (score, score, str(tmp_path / "b"))
    again = made(tmp_path / "a")
    again.load_state_dict(before.state_dict())
    assert again.state_dict() == before.state_dict(), "where it was nothing changes"
    empty = made(tmp_path / "b")
    empty.load_state_dict(made(tmp_path / "a").state_dict())
    assert empty.best_model_path == "", "before the first validation"


def test_checkpoints_of_earlier_versions_are_gone_on_from(tmp_path):
    """Lightning finds a callback's state by this key."""
    assert KeepBest(tmp_path, **OF).state_key == ModelCheckpoint(tmp_path, **OF).state_key
