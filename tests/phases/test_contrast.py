"""Phase 4's own steps by a real trainer: what is taught, who moves, by what it is judged."""

import copy
import math
from functools import partial

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from anomaly3d.data.module import PSEUDO, HeadCTDataModule
from anomaly3d.data.pasting import taught, taught_batch
from anomaly3d.data.pseudo_anomalies import KINDS
from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.errors import UserError
from anomaly3d.phases.contrast import CHECKED, PASTED, SCALES, ContrastPhase, contrast_loss, largest
from anomaly3d.phases.encoder import SPOILED, EncoderPhase
from tests.writers import noise_cohort

SIDE = 16
MODEL = ModelConfig(4, 8, SIDE, "group", "none", "group", "tanh")
SGD = partial(torch.optim.SGD, lr=0.1)
KINDS_TAUGHT = ["lump", "displaced"]


def detector(**contrast):
    torch.manual_seed(0)
    return FAnoGAN(MODEL, contrast={"width": 8, "kinds": KINDS_TAUGHT, **contrast})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    made = HeadCTDataModule(
        noise_cohort(tmp_path_factory.mktemp("contrast"), SIDE, train=5, validation=4), 2, 2, seed=1
    )
    made.monitored = ("patch",)
    return made


def trainer(epochs=1):
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, num_sanity_val_steps=0, **quiet)


def test_the_loss_is_the_cross_entropy_of_each_brain_at_each_scale():
    torch.manual_seed(2)
    logits, wrong, brain = torch.randn(2, 1, 4, 4, 8), torch.rand(2, 1, 4, 4, 8) < 0.4, torch.rand(2, 1, 4, 4, 8) < 0.7
    expected = []
    for scale in SCALES:
        for z, w, b in zip(logits, wrong, brain, strict=True):
            cubes = [
                v.float().unfold(1, scale, scale).unfold(2, scale, scale).unfold(3, scale, scale) for v in (z, w, b)
            ]
            z, share, inside = (v.flatten(4).mean(-1).flatten().tolist() for v in cubes)
            costs = [
                4 * math.log1p(math.exp(-a)) if s >= 0.5 else math.log1p(math.exp(a))
                for a, s in zip(z, share, strict=True)
            ]
            expected.append(sum(c * i for c, i in zip(costs, inside, strict=True)) / max(sum(inside), 1))
    assert float(contrast_loss(logits, wrong, brain)) == pytest.approx(sum(expected) / 6, rel=1e-5)


def test_it_moves_the_contrast_network_alone_by_what_was_pasted(data):
    made = detector()
    phase = ContrastPhase(made, SGD, seed=4)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    fitting = trainer()
    losses = []
    phase.on_before_backward = lambda loss: losses.append(float(loss.detach()))
    fitting.fit(phase, data)
    for key, value in made.state_dict().items():
        taught_now = key.startswith(("contrast.net", "contrast.mean", "contrast.spread"))
        if not key.endswith("conv.bias"):  # a norm takes out what most of them add
            assert torch.equal(value, before[key]) != taught_now, key
        assert taught_now or torch.equal(value, before[key]), key
    batch = next(iter(data.train_dataloader()))
    donors = data.volumes("train")[:, 0]
    seeds = torch.randint(2**62, (2,), generator=phase.noise(0, PASTED))
    pairs = [
        taught(x[0], b[0] > 0, donors, KINDS_TAUGHT, torch.Generator().manual_seed(int(s)))
        for x, b, s in zip(batch["image"], batch["brain"], seeds, strict=True)
    ]
    _, x, wrong, brain = (torch.stack(part)[:, None] for part in zip(*pairs, strict=True))
    fresh = detector()
    fresh.contrast.mean.copy_(made.contrast.mean)
    fresh.contrast.spread.copy_(made.contrast.spread)
    fresh.train()
    expected = contrast_loss(fresh.contrast(x, fresh.eval().reconstruct(x)), wrong, brain)
    assert losses[0] == pytest.approx(float(expected), rel=1e-4)


def test_usual_residuals_are_those_of_validation_scans(data):
    made = detector()
    phase = ContrastPhase(made, SGD)
    trainer().fit(phase, data)
    x, brain = data.volumes("validation"), data.volumes("validation", "brain_mask").float()
    with torch.no_grad():
        residual = (x - made.reconstruct(x)) * brain
    cube = 7**3
    count, total, square = (F.avg_pool3d(v.sum(0), 7, 1, 3) * cube for v in (brain, residual, residual**2))
    middle = (0, SIDE // 2, SIDE // 2, SIDE // 2)
    mean = float(total[middle] / count[middle])
    assert float(made.contrast.mean[middle]) == pytest.approx(mean, rel=1e-4)
    assert float(made.contrast.spread[middle]) == pytest.approx(
        math.sqrt(float(square[middle] / count[middle]) - mean**2), rel=1e-3
    )


def test_it_is_watched_by_a_kind_that_was_left_out(data):
    made = detector()
    phase = ContrastPhase(made, SGD, seed=4)
    assert made.judged_by == ("patch", "bright_shell", "dark_shell")
    fitting = trainer()
    fitting.fit(phase, data)
    (logged,) = fitting.validate(phase, data, verbose=False)
    rows = data.split(PSEUDO)
    patches = rows[rows["lesions"] == "patch"]["image"]
    assert len(patches) == 4
    batches = list(data.val_dataloader())
    scores = {
        kind: torch.cat([largest(phase.logits(b[kind]), b["brain"] > 0) for b in batches])
        for kind in ("image", "pseudo")
    }
    auc = roc_auc_score([0] * 4 + [1] * 4, torch.cat([scores["image"], scores["pseudo"]]).detach())
    assert logged["contrast/val_pseudo_auc"] == pytest.approx(auc, abs=1e-6)
    losses = []
    for number, batch in enumerate(batches):
        x, wrong, brain = phase.pasted(batch, number, CHECKED)
        losses.append(float(contrast_loss(phase.logits(x), wrong, brain)))
    assert logged["contrast/val_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_a_scans_score_is_the_mean_of_its_largest_logits_inside_its_brain():
    """2 of 18^3 voxels, as 100 of 64^3."""
    logits, brain = torch.zeros(2, 1, 18, 18, 18), torch.ones(2, 1, 18, 18, 18, dtype=torch.bool)
    logits[0, 0, 3, 4, 5], logits[0, 0, 6, 7, 8], logits[1, 0, 1, 1, 1] = 6.0, 4.0, 9.0
    brain[1, 0, 1, 1, 1] = False
    torch.testing.assert_close(largest(logits, brain), torch.tensor([5.0, 0.0]))


def test_its_pictures_are_scan_truth_and_what_was_found_on_one_scale(data):
    phase = ContrastPhase(detector(), SGD, seed=4)
    data.prepare_data()
    data.setup()
    phase.trainer = trainer()
    phase.trainer.datamodule = data
    values = set()
    for batch in data.val_dataloader():
        x, wrong, _ = phase.pasted(batch, 0, CHECKED)
        shown = phase.pictures(batch)["pasted"]
        assert len(shown) == len(x)
        for (a, b, c), scan, truth, logits in zip(shown, x, wrong, phase.logits(x), strict=True):
            assert torch.equal(a, scan[0])
            assert torch.equal(b, truth[0] * 2.0 - 1)
            torch.testing.assert_close(c, 2 / (1 + torch.exp(-logits[0])) - 1)
            values |= set(b.unique().tolist())
    assert values == {-1.0, 1.0}


def test_only_a_taught_network_makes_a_map_and_a_phase_before_is_taken_over(tmp_path):
    plain, made = FAnoGAN(MODEL), detector()
    x = torch.rand(2, 1, SIDE, SIDE, SIDE) * 2 - 1
    assert made.eval().examine({"image": x}).maps == {}
    assert made.judged_by == KINDS
    own = {k: v.clone() for k, v in made.contrast.state_dict().items()}
    made.begin_with(plain)
    for key, value in plain.state_dict().items():
        assert torch.equal(made.state_dict()[key], value)
    for key, value in made.contrast.state_dict().items():
        assert torch.equal(value, own[key])
    ContrastPhase(made, SGD)
    made.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    found = again.examine({"image": x})
    torch.testing.assert_close(found.maps["contrast"], made.eval().contrast(x, found.reconstruction))
    torch.testing.assert_close(found.scores["total"], plain.eval().examine({"image": x}).scores["total"])


def test_the_network_sees_what_it_is_told_to():
    made = detector(sees=["residual", "mirror", "place"]).contrast
    made.mean.fill_(0.1)
    made.spread.fill_(0.5)
    x, again = torch.rand(2, 1, SIDE, SIDE, SIDE) * 2 - 1, torch.rand(2, 1, SIDE, SIDE, SIDE) * 2 - 1
    again[0, 0, 0, 0, 0] = -9.0
    seen = made.seen(x, again)
    assert seen.shape == (2, 5, SIDE, SIDE, SIDE)
    torch.testing.assert_close(seen[:, :1], ((x - again - 0.1) / 0.5).clamp(-8, 8) / 4)
    assert float(seen[0, 0, 0, 0, 0]) == 2
    torch.testing.assert_close(seen[1, 1, 3], x[1, 0, 3] - x[1, 0, SIDE - 4])
    assert seen[0, 2:, 0, SIDE - 1, 0].tolist() == [-1, 1, -1]


@pytest.mark.parametrize(
    ("contrast", "words"),
    [
        ({"sees": ["atlas"]}, "must name some of scan"),
        ({"sees": []}, "must name some of scan"),
        ({"kinds": ["blob"]}, "kinds must name some of lump"),
        ({"width": 7}, "multiple of 8"),
        ({"depth": 3}, "unexpected keyword"),
    ],
)
def test_a_wrong_network_is_named(contrast, words):
    with pytest.raises(UserError, match=f"detector.module.contrast and restored.*{words}"):
        detector(**contrast)


def test_without_a_network_there_is_no_phase_4():
    with pytest.raises(UserError, match=r"detector\.module\.contrast is null"):
        ContrastPhase(FAnoGAN(MODEL), SGD)


def test_phases_2_and_3_may_learn_to_take_anomalies_out(data):
    torch.manual_seed(0)
    made = FAnoGAN(MODEL, restored=["lump"])
    assert made.judged_by == ("patch", "bright_shell", "dark_shell", "displaced")
    phase = EncoderPhase(made, SGD, seed=6)
    losses = []
    phase.on_before_backward = lambda loss: losses.append(float(loss.detach()))
    fresh = copy.deepcopy(made)
    trainer().fit(phase, data)
    batch = next(iter(data.train_dataloader()))
    x, spoiled, *_ = taught_batch(batch, data.volumes("train")[:, 0], ["lump"], phase.noise(0, SPOILED))
    assert not torch.equal(x, spoiled)
    expected = fresh.distances(x, fresh.reconstruct(spoiled))["total"].mean()
    assert losses[0] == pytest.approx(float(expected), rel=1e-4)
