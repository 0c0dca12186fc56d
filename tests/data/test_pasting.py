import pytest
import torch

from anomaly3d.data import pasting
from anomaly3d.data.pasting import (
    CALCIFIED,
    FLUID,
    PASTED,
    SEEN,
    depth_of,
    filled,
    harmless,
    left_out,
    posed,
    taught,
    with_anomaly,
)
from anomaly3d.data.pseudo_anomalies import KINDS

SHAPE = (26, 30, 22)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def head():
    """A ball of brain at -0.1 with a pool of fluid in its middle and furrows of one voxel; and its mask."""
    i, j, k = torch.meshgrid(*(torch.arange(n) - n / 2 + 0.5 for n in SHAPE), indexing="ij")
    brain = (i / 12) ** 2 + (j / 14) ** 2 + (k / 10) ** 2 < 1
    x = torch.where(brain, torch.tensor(-0.1), torch.tensor(-1.0))
    x[brain & (i.abs() < 3) & (j.abs() < 5) & (k.abs() < 4)] = -0.6
    x[brain & (j == 8.5)] = -0.5
    return x + 0.02 * torch.randn(SHAPE, generator=rng(1)) * brain, brain


@pytest.mark.parametrize("kind", PASTED)
def test_each_kind_changes_the_brain_only_and_labels_what_can_be_seen(head, kind):
    x, brain = head
    donors = torch.stack([x.roll(3, 1), x.flip(1)])
    changes = 0
    for seed in range(24):
        made, seen = with_anomaly(x, brain, donors, kind, rng(seed))
        again, _ = with_anomaly(x, brain, donors, kind, rng(seed))
        assert torch.equal(made, again)
        assert torch.equal(made[~brain], x[~brain])
        assert not seen[~brain].any()
        assert made[brain].min() > -1
        assert made.max() <= 1
        difference = (made - x).abs()
        assert (difference[seen] > SEEN / 2).all()
        changes += bool(seen.any())
        assert pasting.blurred(made - x, 3).abs()[~seen & (difference > SEEN)].le(SEEN + 1e-6).all()
    assert changes >= 4


def test_a_shell_lies_under_the_surface_and_fluid_where_it_was_dark(head):
    x, brain = head
    depth = depth_of(brain, 12)
    assert depth[~brain].max() == 0
    assert depth[brain].min() == 1
    assert int(depth.max()) == 7  # a cube of 7 to each side fits in
    box = torch.zeros(9, 12, 11, dtype=torch.bool)
    box[1:8, 2:9, 2:9] = True
    assert depth_of(box, 3)[4, :, 5].tolist() == [0, 0, 1, 2, 3, 3, 3, 2, 1, 0, 0, 0]
    deeper = torch.cat([depth[with_anomaly(x, brain, x[None], "shell", rng(seed))[1]] for seed in range(20)])
    assert 1 <= deeper.median() <= 3
    for seed in range(10):
        made = with_anomaly(x, brain, x[None], "fluid", rng(seed))[0]
        changed = (made != x) & brain
        assert (pasting.blurred(x, 3)[changed] < FLUID).all()
        assert (made[changed] > x[changed]).all()


def test_a_fissure_fills_furrows_and_leaves_even_tissue(head):
    x, brain = head
    furrow = brain & (x < -0.3)
    risen = []
    for seed in range(20):
        made, _ = with_anomaly(x, brain, x[None], "fissure", rng(seed))
        assert (made - x).min() > -1e-6
        risen.append(float((made - x)[furrow].max()))
        assert float((made - x)[brain & ~furrow].mean()) < 0.03
    assert max(risen) > 0.3


def test_what_is_filled_keeps_its_texture(head):
    x, brain = head
    share = torch.zeros(SHAPE)
    share[11:15, 20:23, 9:13] = 1
    made = filled(x, brain, share, rng(3))
    inside = share > 0
    assert float((made - x)[~inside].abs().max()) == 0
    residue = [(v - pasting.local_mean(v, brain))[12:14, 21, 10:12].flatten() for v in (x, made)]
    assert torch.corrcoef(torch.stack(residue))[0, 1] > 0.9


def test_harmless_changes_are_small_and_move_the_mask_along(head):
    x, brain = head
    bright = x.clone()
    bright[13, 15, 5] = 0.95
    mirrored = calcified = 0
    for seed in range(30):
        made, inside = harmless(x, brain, bright[None], rng(seed))
        assert (made[~inside] == -1).all()
        assert (made[inside] > -1).all()
        assert abs(float(inside.sum()) / float(brain.sum()) - 1) < 0.05
        assert abs(float(made[inside].mean() - x[brain].mean())) < 0.1
        calcified += bool((made > CALCIFIED - 0.1).any())
        moved = harmless(torch.where(torch.arange(SHAPE[0])[:, None, None] < 8, 0.5, x), brain, x[None], rng(seed))[0]
        mirrored += bool(moved[-8:].mean() > moved[:8].mean())
    assert 3 <= calcified <= 20
    assert 7 <= mirrored <= 23


def test_another_pose_is_a_turn_and_a_shift_of_volume_and_mask_together(head):
    x, brain = head
    moved, inside = posed(x, brain, rng(4))
    assert not torch.equal(inside, brain)
    assert (moved[~inside] == -1).all()
    overlap = float((inside & brain).sum()) / float(brain.sum())
    assert 0.8 < overlap < 1


def test_a_shell_stays_under_the_surface():
    """At most 1.9 times the largest thickness and the softest rim deep, whatever its seed."""
    i, j, k = torch.meshgrid(*3 * (torch.arange(64) - 31.5,), indexing="ij")
    radius = (i**2 + j**2 + k**2).sqrt()
    brain = radius < 30
    x = torch.where(brain, torch.tensor(-0.1), torch.tensor(-1.0))
    deep = radius < 30 - 1.9 * 64 * pasting.THICKNESS[1] - pasting.EDGE[1] - 2
    assert deep.sum() > 3000
    for seed in range(60):
        changed = PASTED["shell"](x, brain, x[None], rng(seed))
        assert torch.equal(changed[deep], x[deep]), seed


def test_a_quarter_of_what_is_taught_has_nothing_wrong(head):
    x, brain = head
    found = [taught(x, brain, x[None], ["lump"], rng(seed)) for seed in range(80)]
    nothing = sum(not bool(wrong.any()) for _, _, wrong, _ in found)
    untouched = sum(torch.equal(healthy, spoiled) for healthy, spoiled, *_ in found)
    assert 14 <= untouched <= 27
    assert untouched <= nothing <= 44  # small lumps in this small head are not seen
    for healthy, spoiled, wrong, inside in found:
        assert healthy.shape == spoiled.shape == wrong.shape == inside.shape == SHAPE
        assert ((healthy == -1) == (spoiled == -1)).all()
        assert torch.equal(inside, healthy > -1)  # turned and shifted as the head is
        assert ((healthy != spoiled) | ~wrong).all()


def test_judged_by_what_was_not_taught():
    assert left_out(["lump", "shell", "fluid", "fissure", "displaced"]) == ("patch",)
    assert left_out(["patch", "lump"]) == ("bright_shell", "dark_shell", "displaced")
    assert left_out(["fluid"]) == KINDS
    assert left_out([]) == KINDS
    for kinds, words in ((["blob"], "must name"), (list(PASTED), "leaves out none")):
        with pytest.raises(ValueError, match=words):
            left_out(kinds)
