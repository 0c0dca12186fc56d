"""2D f-AnoGAN: which slices it sees and judges, and what becomes of them, by hand."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig, smoothed
from anomaly3d.detectors.fanogan_2d import FAnoGAN2D
from anomaly3d.errors import UserError
from anomaly3d.phases.encoder import EncoderPhase
from anomaly3d.phases.gan import GANPhase
from anomaly3d.system.device import memory_format
from anomaly3d.training.callbacks.pictures import middle_planes

FLAT = dict(channels=4, latent=8, resolution=16, generator_norm="group", critic_norm="none", encoder_norm="group")
FLAT |= {"encoder_output": "tanh", "spatial_dims": 2}


def tiny(**changes):
    torch.manual_seed(0)
    return FAnoGAN2D(FLAT, **changes)


def numbered(count=3):
    """Volumes of 4 x 5 x 10 voxels, each with its own number times 100 plus that of the slice."""
    x = torch.arange(10.0).expand(count, 1, 4, 5, 10)
    return x + 100 * torch.arange(float(count)).view(-1, 1, 1, 1, 1)


class Mean(nn.Module):
    """E: the mean of a slice; G: that number everywhere on 2 x 3 pixels; f: 5 x^2."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        if self.what == "encoder":
            return x.flatten(1).mean(1, keepdim=True)
        return 5 * x.square() if self.what == "features" else x.view(-1, 1, 1, 1).expand(-1, 1, 2, 3)


def test_scores_and_reconstruction_by_hand():
    """Slice k of scan n differs from its mean, 0.2, by 0.1 k (n + 1) at every pixel: half are above, half below."""
    detector = FAnoGAN2D(ModelConfig(1, 1, 8, "none", "none", "none", "linear", 2), kappa=0.5, middle=(0.3, 0.7))
    detector.encoder, detector.generator = Mean("encoder"), Mean("generator")
    detector.critic.trunk.layers = nn.Sequential(Mean("features"))
    off = 0.1 * torch.arange(10.0) * torch.tensor([[1.0], [2.0]])  # (scan, slice)
    x = 0.2 + off.view(2, 1, 1, 1, 10) * torch.tensor([1.0, -1, 1, -1, 1, -1]).view(1, 1, 2, 3, 1)
    found = detector.examine({"image": x})
    off = off[:, 3:7]
    image = off**2  # eq. 4
    feature = 25 * (((0.2 + off) ** 2 - 0.04) ** 2 + ((0.2 - off) ** 2 - 0.04) ** 2) / 2  # eq. 5
    total = image + 0.5 * feature
    drawn = detector.drawn(x)
    expected = {"image": image.mean(1), "feature": feature.mean(1), "total": total.mean(1), "maximum": total[:, -1]}
    expected |= {"latent": torch.zeros(2), "slice": total[[0, 1], drawn - 3]}
    assert found.scores.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found.scores[name], value, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.reconstruction[..., 3:7], torch.full((2, 1, 2, 3, 4), 0.2))
    for outside in (slice(0, 3), slice(7, 10)):
        assert torch.equal(found.reconstruction[..., outside], x[..., outside])
    for name, value in detector.losses(x).items():  # what validations log
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_a_step_sees_drawn_axial_slices_of_the_middle():
    detector, x = tiny(middle=(0.3, 0.7), slices=50), numbered()
    seen = detector.shown(x, torch.Generator().manual_seed(1))
    assert seen.shape == (150, 1, 4, 5)
    assert (seen == seen[:, :, :1, :1]).all()
    numbers = seen[:, 0, 0, 0].view(3, 50)
    assert [set((row - 100 * n).tolist()) for n, row in enumerate(numbers)] == [{3, 4, 5, 6}] * 3
    assert len(np.unique(numbers % 100, axis=0)) == 3  # each volume draws its own
    assert torch.equal(seen, detector.shown(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(seen, detector.shown(x, torch.Generator().manual_seed(2)))
    everything = detector.shown(x)[:, 0, 0, 0]
    assert everything.tolist() == [100 * n + k for n in range(3) for k in (3, 4, 5, 6)]


def test_two_processes_draw_together_what_one_would(monkeypatch):
    detector, x = tiny(middle=(0.0, 1.0)), numbered(4)
    together = detector.shown(x, torch.Generator().manual_seed(1))
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("anomaly3d.data.sampler.place", lambda rank=rank: (rank, 2))
        parts.append(detector.shown(x[2 * rank : 2 * rank + 2], torch.Generator().manual_seed(1)))
    assert torch.equal(torch.cat(parts), together)


def test_a_scan_draws_its_slice_by_its_voxels_and_all_are_equally_likely():
    detector = tiny(middle=(0.3, 0.7))
    x = torch.rand(400, 1, 2, 2, 10, generator=torch.Generator().manual_seed(0))
    drawn = detector.drawn(x)
    torch.rand(3)
    assert torch.equal(detector.drawn(x[[7, 3]]), drawn[[7, 3]])
    counts = torch.bincount(drawn, minlength=10)
    assert counts[3:7].sum() == 400
    assert counts[3:7].min() > 70


def test_the_phases_work_on_slices():
    """A step of each phase on the slices that the step draws, validation on all of the middle."""
    detector, x = tiny(slices=2), torch.rand(3, 1, 16, 16, 16) * 2 - 1
    phase = EncoderPhase(detector, torch.optim.SGD, seed=4)
    phase.log_dict = lambda *a, **k: None
    slices = detector.shown(x, phase.noise(0, 7))
    assert slices.shape == (6, 1, 16, 16)
    expected = FAnoGAN.losses(detector, slices)["total"].mean()
    torch.testing.assert_close(phase.training_step({"image": x}, 0), expected)
    everything = FAnoGAN.losses(detector, detector.shown(x))["total"].view(3, 4).mean(1).detach()
    torch.testing.assert_close(phase.losses(x)["total"], everything)
    balance = phase.balance(x[:2], x[2:])
    assert balance["gap"] == pytest.approx(float(everything[2] / everything[:2].mean()), rel=1e-3)
    gan, seen = GANPhase(detector, torch.optim.SGD, 10.0, 1, seed=4), []
    gan.optimizers, gan.lr_schedulers = lambda: (None, None), lambda: None
    gan.critic_step = gan.generator_step = lambda real, _: seen.append(real)
    for step in range(2):
        gan.training_step({"image": x}, step)
    assert torch.equal(seen[0], slices)
    assert torch.equal(seen[1], seen[0])  # critic and generator of one step
    assert torch.equal(seen[2], detector.shown(x, gan.noise(1, 7)))
    assert not torch.equal(seen[2], seen[0])


def test_health_compares_slices_of_different_heads():
    detector = tiny(middle=(0.3, 0.7))
    phase = GANPhase(detector.requires_grad_(False), torch.optim.SGD, 10.0, 1)
    heads = phase.one_of_each(numbered(6))[:, 0, 0, 0]
    assert (heads // 100).tolist() == list(range(6))
    assert len(set((heads % 100).tolist())) > 1
    x = torch.nn.functional.avg_pool3d(torch.randn(6, 1, 32, 32, 32), 5, 1, 2).tanh()
    flat = FAnoGAN2D({**FLAT, "resolution": 32}).requires_grad_(False)
    phase = GANPhase(flat, torch.optim.SGD, 10.0, 1)
    seen = phase.one_of_each(x)
    found = phase.sample_health(seen, phase.one_of_each(x.flip(2)), 0.0)
    assert found.keys() == {"sameness", "distance", "copying", "overfitting"}
    assert all(np.isfinite(list(found.values())))


def test_pictures_are_of_slices_in_the_heads_proportions():
    detector = tiny().requires_grad_(False)
    (sample,) = GANPhase(detector, torch.optim.SGD, 10.0, 1).pictures({"image": torch.zeros(1, 1, 16, 16, 16)})[
        "samples"
    ]
    assert sample[0].shape == (16, 16)
    picture = middle_planes(sample[0], np.array([2.0, 3.0, 9.0]))
    assert picture.shape == (24, 16)  # front to back is 1.5 times as long
    x = torch.rand(2, 1, 16, 16, 16)
    (volume, again, _), _ = EncoderPhase(detector, torch.optim.SGD).pictures({"image": x})["reconstructions"]
    assert torch.equal(volume, x[0, 0])
    assert torch.equal(again, detector.examine({"image": x}).reconstruction[0, 0])


def test_weights_of_slices_and_of_volumes_get_the_layout_that_a_gpu_wants(monkeypatch):
    asked = partial(memory_format, torch.device("cuda"))
    monkeypatch.setattr("anomaly3d.phases.base.memory_format", lambda device, axes: asked(axes))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(strategy=strategy)
    volumes = FAnoGAN({**FLAT, "spatial_dims": 3})
    for detector, layout in ((tiny(), torch.channels_last), (volumes, torch.channels_last_3d)):
        phase = GANPhase(detector, torch.optim.SGD, 10.0, 1)
        phase.trainer = trainer
        phase.setup("fit")
        assert detector.critic.trunk.layers[2].weight.is_contiguous(memory_format=layout)
        assert not detector.critic.trunk.layers[2].weight.is_contiguous()


@torch.no_grad()
def test_findings_belong_to_the_scan_and_a_saved_detector_finds_the_same(tmp_path):
    detector, x = tiny(smooth=True, middle=(0.2, 0.9)).eval(), torch.rand(3, 1, 16, 16, 16)
    found = detector.examine({"image": x})
    alone = detector.examine({"image": x[2:], "scan_id": ["other"]})
    detector.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    assert again.config == detector.config
    for name, value in again.examine({"image": x}).scores.items():
        assert torch.equal(value, found.scores[name]), name
        torch.testing.assert_close(alone.scores[name][0], value[2], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_a_mirrored_head_has_the_mirrored_reconstruction():
    x = torch.rand(2, 1, 16, 16, 16)
    for mirrored in (True, False):
        detector = tiny(mirrored=mirrored).eval()
        once, turned = (detector.examine({"image": v}).reconstruction for v in (x, x.flip(2)))
        assert torch.allclose(turned.flip(2), once, atol=1e-5) == mirrored


def test_a_slice_is_smoothed_along_its_two_axes():
    x = torch.full((1, 1, 5, 4), -1.0)
    x[0, 0, 2, 1] = 0.6
    found = smoothed(x)[0, 0] + 1
    for place, share in {(2, 1): 4, (1, 1): 8, (2, 2): 8, (3, 0): 16, (2, 3): np.inf}.items():
        assert float(found[place]) == pytest.approx(1.6 / share)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"middle": (0.7, 0.45)}, "middle"),
        ({"middle": (0.5, 0.51)}, "middle"),
        ({"slices": 0}, "slices"),
        ({"model": {**FLAT, "spatial_dims": 3}}, "spatial_dims must be 2 for 2D f-AnoGAN"),
    ],
)
def test_an_impossible_setting_is_named(change, words):
    with pytest.raises(UserError, match=words):
        FAnoGAN2D(**{"model": FLAT, **change})
