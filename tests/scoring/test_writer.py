"""What the writer keeps while networks score."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from anomaly3d.detectors.base import Findings
from anomaly3d.phases.base import Predicting
from anomaly3d.scoring.writer import FEATURES, ScoreWriter, read_scores
from anomaly3d.training.callbacks.progress import ShowProgress

SHAPE = (6, 5, 4)


def test_an_error_before_the_first_step_is_not_replaced_by_another():
    ShowProgress().on_exception(None, None, ValueError("a damaged checkpoint"))


@pytest.fixture
def trainer(tmp_path):
    """A trainer whose data module predicts three scans."""
    rows = pd.DataFrame({"scan_id": list("abc"), **{name: "" for name in FEATURES}})
    affine = np.diag([2.0, 3, 4, 1])
    rows["image"] = [str(tmp_path / f"{scan}.nii.gz") for scan in "abc"]
    for path in rows["image"]:
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), affine), path)
    data = SimpleNamespace(predicted="test", split=lambda name: rows)
    strategy = SimpleNamespace(barrier=lambda: None)
    return SimpleNamespace(datamodule=data, world_size=1, is_global_zero=True, strategy=strategy)


def write(trainer, folder, findings):
    """Findings of the batches (a, b) and (c, c), the second filled up with its last scan."""
    writer = ScoreWriter(folder, "toy", volumes=True)
    writer.on_predict_start(trainer, Predicting(SimpleNamespace(title="toy")))
    for number, batch in enumerate((["a", "b"], ["c", "c"])):
        writer.write_on_batch_end(trainer, None, findings, None, {"scan_id": batch}, number, 0)
    writer.on_predict_epoch_end(trainer, None)
    return read_scores(folder / "scores.csv")


def test_a_scan_is_counted_and_kept_once(trainer, tmp_path, capsys):
    table = write(trainer, tmp_path / "out", Findings({"total": torch.tensor([1.0, 2.0])}))
    assert list(table["scan_id"]) == list("abc")
    assert list(table["total"]) == [1, 2, 1]
    assert capsys.readouterr().out.startswith("toy, test scans: 3/3")
    assert not (tmp_path / "out" / "reconstruction").exists()


def test_volumes_lie_on_the_grid_of_their_scan(trainer, tmp_path):
    x = torch.rand(2, 1, *SHAPE) * 2 - 1
    found = Findings({"total": torch.zeros(2)}, x, {"logit": 5 * x})
    write(trainer, tmp_path / "out", found)
    kept = nib.load(tmp_path / "out" / "reconstruction" / "b.nii.gz")
    np.testing.assert_allclose(kept.affine, np.diag([2.0, 3, 4, 1]))
    np.testing.assert_allclose(kept.get_fdata(), x[1, 0], atol=2e-5)
    own = nib.load(tmp_path / "out" / "maps" / "logit" / "b.nii.gz")
    np.testing.assert_allclose(own.get_fdata(), 5 * x[1, 0], rtol=1e-6)


def test_what_leaves_the_range_ends_at_its_limits(trainer, tmp_path):
    x = torch.full((2, 1, *SHAPE), 1.05)
    x[1] = -1.2
    write(trainer, tmp_path / "out", Findings({"total": torch.zeros(2)}, x))
    for name, limit in (("a", 1), ("b", -1)):
        kept = nib.load(tmp_path / "out" / "reconstruction" / f"{name}.nii.gz").get_fdata()
        np.testing.assert_allclose(kept, limit, rtol=1e-6)
