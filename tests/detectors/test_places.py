import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import LedoitWolf

from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.places import AZIMUTHS, BLOCKS, ELEVATIONS, SHELLS, Places, directions
from anomaly3d.detectors.places import numbers as numbers_of

SIDE = 32
SECTORS = AZIMUTHS * ELEVATIONS


def numbers(x):
    """Of a volume without smoothing at its edge."""
    return numbers_of(x, x > -1)


def heads(count, seed=0):
    """Balls of brain with noise, ``(N, 1, D, H, W)``."""
    line = torch.arange(SIDE) - SIDE / 2 + 0.5
    i, j, k = torch.meshgrid(line, line, line, indexing="ij")
    brain = (i / 13) ** 2 + (j / 15) ** 2 + (k / 12) ** 2 < 1
    noise = 0.1 * torch.randn((count, 1, *brain.shape), generator=torch.Generator().manual_seed(seed))
    return torch.where(brain, -0.1 + noise, torch.tensor(-1.0))


def test_directions_are_sectors_of_a_sphere():
    where = directions((21, 19, 17), torch.device("cpu"))
    assert sorted(where.unique().tolist()) == list(range(SECTORS))
    assert where[20, 9, 8] != where[0, 9, 8]  # right and left
    assert where[10, 18, 8] != where[10, 0, 8]  # front and back
    assert (where[10, 9, 16] % ELEVATIONS, where[10, 9, 0] % ELEVATIONS) == (ELEVATIONS - 1, 0)


def test_numbers_are_means_of_the_rim_and_the_brightest_of_blocks():
    x = torch.full((64, 64, 64), -1.0)
    x[8:56, 8:56, 8:56] = -0.1
    assert numbers(x).nan_to_num().abs().max() < 1e-6
    bright = x.clone()
    bright[8:56, 8:56, 8] = 0.4  # one voxel deep, below
    found = numbers(bright)
    rim = found[: SECTORS * len(SHELLS)].view(len(SHELLS), AZIMUTHS, ELEVATIONS)
    assert rim[0, :, 0].min() > 0.2
    assert rim[0, :, 2].abs().max() < 1e-6
    assert rim[1:].nan_to_num().abs().max() < 1e-6
    clot = x.clone()
    clot[24:32, 32:40, 16:18] = 0.5  # a quarter of one block
    blocks = numbers(clot)[SECTORS * len(SHELLS) :].view(BLOCKS, BLOCKS, BLOCKS)
    assert float(blocks[3, 4, 2]) == pytest.approx(0.6)
    blocks[3, 4, 2] = 0
    assert blocks.nan_to_num().abs().max() < 1e-6
    assert blocks[0].isnan().all()  # no brain
    assert numbers(torch.full((64, 64, 64), -1.0)).isnan().all()
    torch.testing.assert_close(numbers(clot + 0.05 * (clot > -1)), numbers(clot), equal_nan=True, atol=1e-6, rtol=0)


def test_what_smoothing_leaves_around_the_brain_is_not_its_rim():
    x = heads(1)[0, 0]
    brain = x > -1
    smooth = F.avg_pool3d(F.pad(x[None], [2] * 6, value=-1.0), 5, 1)[0]
    halo = torch.where(brain, x, smooth)
    assert (halo > -1).sum() > 1.3 * brain.sum()
    torch.testing.assert_close(numbers_of(halo, brain), numbers(x), equal_nan=True)
    train = heads(24)
    masks = (train > -1).byte()
    around = torch.where(masks > 0, train, F.avg_pool3d(F.pad(train, [2] * 6, value=-1.0), 5, 1))
    clean, found = Places(), Places()
    clean.fit(train, train, masks)
    found.fit(around, around, masks)
    expected = clean.examine({"image": x[None, None], "brain": brain[None, None]}).scores["total"]
    got = found.examine({"image": halo[None, None], "brain": brain[None, None]}).scores["total"]
    torch.testing.assert_close(got, expected)


def test_the_score_is_the_shrunk_mahalanobis_distance(tmp_path):
    train, test = heads(24), heads(3, seed=9)
    test[0, 0, 18:22, 14:18, 14:18] += 0.6
    made = Places()
    made.fit(train, train, (train > -1).byte())
    rows = np.stack([numbers(x[0]).numpy() for x in train])
    kept = np.isfinite(rows).mean(0) >= 0.95
    rows, mean, spread = rows[:, kept], rows[:, kept].mean(0), rows[:, kept].std(0, ddof=1)
    model = LedoitWolf().fit((rows - mean) / spread)
    z = (np.stack([numbers(x[0]).numpy() for x in test])[:, kept] - mean) / spread
    expected = np.einsum("ni,ij,nj->n", z, model.precision_, z) / kept.sum()
    scans = {"image": test, "brain": test > -1}
    got = made.examine(scans).scores["total"]
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    assert float(got[0]) > 1.5 * float(got[1:].max())
    made.save(tmp_path / "places.pt")
    torch.testing.assert_close(load_detector(tmp_path / "places.pt").examine(scans).scores["total"], got)


def test_what_a_scan_lacks_counts_as_usual():
    train = heads(24)
    made = Places()
    made.fit(train, train, (train > -1).byte())
    cut = heads(1, seed=3)
    cut[..., :14] = -1
    for x in (cut, torch.full_like(cut, -1.0)):
        assert math.isfinite(float(made.examine({"image": x, "brain": x > -1}).scores["total"]))
