"""Phases that break down, on noise."""

import pytest
import torch

from anomaly3d.errors import UserError
from anomaly3d.training.run import train_phase
from tests.training.test_resume import SIX, job, of_parents  # noqa: F401

JUMP = (
    "++phase.module.scheduler={_target_: torch.optim.lr_scheduler.StepLR, _partial_: true, step_size: 3, gamma: 1e30}"
)


def finite(path):
    return all(v.isfinite().all() for v in torch.load(path, weights_only=True)["state_dict"].values())


@pytest.mark.parametrize("phase", ["gan", "encoder"])  # with own and with Lightning's optimization
def test_a_phase_that_breaks_down_keeps_its_last_good_state_and_no_model(job, phase):  # noqa: F811
    """Its learning rate jumps after step 3: weights, of the encoder still finite, give no numbers in validation."""
    broken = of_parents(job, phase, f"broken-{phase}", *SIX, JUMP)
    with pytest.raises(UserError, match=rf"phase {phase} broke down at step 4.*last.ckpt \(step 2\).*2e\+26 now.*anew"):
        train_phase(broken)
    folder = broken.folder
    assert finite(folder.last_checkpoint)
    assert not folder.previous_checkpoint.exists()  # one epoch ended well
    assert not folder.model.exists()
    assert "val" not in (folder.path / "training.csv").read_text().splitlines()[-1]


def test_a_phase_that_never_went_well_may_be_trained_with_other_settings(job):  # noqa: F811
    """Nothing is lost by it, so it takes no overwrite=true."""
    two = ["++phase.steps=2", "++phase.steps_per_epoch=2"]
    with pytest.raises(UserError, match=r"at step [12]: .*no good state before it; lower .*\(1e\+30 now\)$"):
        train_phase(of_parents(job, "encoder", "never", *two, "++phase.module.optimizer.lr=1e30"))
    mended = of_parents(job, "encoder", "never", *two)
    train_phase(mended)
    assert mended.folder.finished()
    assert finite(mended.folder.last_checkpoint)
