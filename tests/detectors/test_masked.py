import pytest
import torch

from anomaly3d.detectors.masked import HIDDEN, MaskedPrediction, partition
from tests.detectors.toys import Answers, batch


@pytest.fixture
def detector():
    torch.manual_seed(0)
    return MaskedPrediction(8, 16, 4, 3, 0.02).eval()


def test_a_partition_is_of_whole_blocks_in_equal_parts():
    drawn = partition((10, 7, 4), 3, 4, torch.Generator().manual_seed(0))
    assert drawn.shape == (10, 7, 4)
    blocks = drawn[::3, ::3, ::3]
    whole = blocks.repeat_interleave(3, 0).repeat_interleave(3, 1).repeat_interleave(3, 2)
    assert torch.equal(drawn, whole[:10, :7, :4])
    assert blocks.flatten().bincount().tolist() == [6, 6, 6, 6]
    assert not torch.equal(drawn, partition((10, 7, 4), 3, 4, torch.Generator().manual_seed(1)))


def test_every_voxel_of_the_brain_is_hidden_once(detector):
    scans = batch()
    detector.net = Answers(lambda seen: torch.zeros_like(seen))
    detector.examine(scans)
    brain = scans["brain"] > 0
    hidden = torch.stack([seen[:, 1:] for seen in detector.net.seen])
    assert len(hidden) == 3
    assert torch.equal(hidden.sum(0) == 1, brain)
    for seen in detector.net.seen:
        where = seen[:, 1:] == 1
        assert (seen[:, :1][where] == HIDDEN).all()
        assert torch.equal(seen[:, :1][~where], scans["image"][~where])


def test_a_network_that_copies_finds_nothing_to_copy(detector):
    scans = batch()
    detector.net = Answers(lambda seen: torch.cat([seen[:, :1], torch.zeros_like(seen[:, :1])], 1))
    reconstruction = detector.examine(scans).reconstruction
    assert (reconstruction[scans["brain"] > 0] == HIDDEN).all()


@torch.no_grad()
def test_a_block_is_predicted_without_itself(detector):
    scans, changed = batch(1), batch(1)
    block = (slice(None), slice(None), slice(8, 12), slice(12, 16), slice(4, 8))
    changed["image"][block] += 0.3 * changed["brain"][block]
    before, after = (detector.examine(s).reconstruction for s in (scans, changed))
    inside = (scans["brain"] > 0)[block]
    assert torch.equal(before[block][inside], after[block][inside])
    moved = (before != after) & (scans["brain"] > 0)
    assert moved.float().mean() > 0.1  # others are predicted from it


def test_the_loss_is_of_what_is_hidden_and_each_scan_hides_its_own(detector):
    """A prediction that is 0.3 off in visible voxels and 0.1 in hidden ones, with a variance of 1."""
    scans = batch()
    detector.net = Answers(
        lambda seen: torch.cat([scans["image"] + torch.where(seen[:, 1:] == 1, 0.1, 0.3), 0 * seen[:, 1:]], 1)
    )
    torch.manual_seed(0)
    variance = 1 + 0.02**2
    expected = 0.01 / variance + torch.log(torch.tensor(variance))
    torch.testing.assert_close(detector.loss(scans)["loss"], expected)
    hidden = detector.net.seen[0][:, 1:]
    assert not torch.equal(hidden[0], hidden[1])
    share = float(hidden.sum() / scans["brain"].sum())
    assert share == pytest.approx(1 / 3, abs=0.15)
