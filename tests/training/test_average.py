"""The average of weights that is validated and kept."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from anomaly3d.training.callbacks.average import WarmAverage


def test_a_short_phase_forgets_what_it_began_with():
    """By hand for the first steps; after many it is the usual moving average."""
    model = torch.nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, **WarmAverage(0.5)._kwargs)
    values, expected = [1.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0], None
    for step, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else kept * expected + (1 - kept) * value
        assert float(averaged.module.weight) == pytest.approx(expected, rel=1e-5)


def test_impossible_decays_are_refused():
    with pytest.raises(ValueError, match="decay must be"):
        WarmAverage(1.0)
