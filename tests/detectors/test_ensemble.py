import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from anomaly3d.arguments import CONF
from anomaly3d.detectors.base import load_detector
from anomaly3d.detectors.ensemble import Ensemble
from anomaly3d.phases.fit import FitPhase
from tests.conftest import detector_config
from tests.detectors.toys import batch

DENOISING = {
    "module": {
        "_target_": "anomaly3d.detectors.denoising.DenoisingAutoencoder",
        "width": 8,
        "resolution": 16,
        "nodes": 4,
        "spread": 0.4,
    }
}
MASKED = {
    "module": {
        "_target_": "anomaly3d.detectors.masked.MaskedPrediction",
        "width": 8,
        "resolution": 16,
        "block": 4,
        "passes": 2,
        "floor": 0.02,
    }
}
VAE = {
    "module": {
        "_target_": "anomaly3d.detectors.vae.VAE",
        "width": 8,
        "latent": 4,
        "resolution": 16,
        "beta": 1.0,
        "spread": 0.1,
    }
}
PCA, PLACES = (detector_config(name) for name in ("pca", "places"))


@pytest.fixture(scope="module")
def made():
    """Four members on the same healthy scans; networks as they begin."""
    torch.manual_seed(0)
    members = {"denoising": DENOISING, "pca": PCA, "masked": MASKED, "places": PLACES}
    ensemble = Ensemble(members, ["exceedance", "pca_exceedance", "masked_deviation_peak", "places"])
    train = batch(12)["image"]
    ensemble.fit(train, batch(4, 1)["image"], (train > -1).byte())
    return ensemble.eval()


def test_each_member_says_what_it_says_alone(made, tmp_path):
    scans = batch(3, seed=5)
    with torch.no_grad():
        found = made.examine(scans)
        alone = {name: member.examine(scans) for name, member in made.each()}
    for name, own in alone.items():
        torch.testing.assert_close(found.scores[name], own.scores["total"].double())
    assert torch.equal(found.reconstruction, alone["denoising"].reconstruction)
    assert found.maps.keys() == {"pca", "masked", "masked_deviation"}  # places has none, denoising's is the residual
    assert torch.equal(found.maps["pca"], scans["image"] - alone["pca"].reconstruction)
    assert torch.equal(found.maps["masked_deviation"], alone["masked"].maps["deviation"])
    product = torch.stack([own.scores["total"].double() for own in alone.values()]).prod(0)
    torch.testing.assert_close(found.scores["total"], product ** (1 / 4))
    made.save(tmp_path / "model.pt")
    again = load_detector(tmp_path / "model.pt").eval()
    assert again.combined == made.combined
    with torch.no_grad():
        torch.testing.assert_close(again.examine(scans).scores["total"], found.scores["total"])


def test_members_are_trained_as_if_each_were_alone(made):
    """The loss is the sum of theirs, so that no weight's gradient knows of another member."""
    scans = batch(3)
    torch.manual_seed(3)
    losses = made.loss(scans)
    assert losses.keys() == {"loss", "denoising", "masked"}
    torch.testing.assert_close(losses["loss"], losses["denoising"] + losses["masked"])
    torch.manual_seed(3)
    denoising = made.members["denoising"]
    weight = next(denoising.parameters())
    (alone,) = torch.autograd.grad(denoising.loss(scans)["loss"], weight)
    (together,) = torch.autograd.grad(losses["loss"], weight)
    torch.testing.assert_close(together, alone)


def test_what_is_learned_at_once_is_learned_before_the_steps(made):
    assert (made.fits, made.fits_at_once) == (True, False)
    assert made.members["pca"].components.numel()
    both = Ensemble({"pca": PCA, "places": PLACES}, ["pca", "places"])
    assert both.fits_at_once
    assert FitPhase(both).configure_optimizers() == []
    assert both.fewest == 3


def test_a_member_must_learn_from_healthy_scans_alone():
    with pytest.raises(ValueError, match="two members or more, not 1"):
        Ensemble({"pca": PCA}, [])
    with pytest.raises(ValueError, match="twin cannot be a member: it is shown more than healthy scans"):
        Ensemble({"pca": PCA, "twin": detector_config("twin")}, [])
    with pytest.raises(ValueError, match="vae cannot be a member: its score may be negative"):
        Ensemble({"pca": PCA, "vae": VAE}, [])
    with initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(compose("train", ["model.channels=4", "model.latent=4"]), resolve=True)
    with pytest.raises(ValueError, match="fanogan cannot be a member: it has phases of its own"):
        Ensemble({"pca": PCA, "fanogan": config["detector"]}, [])


def test_members_leave_on_the_command_line():
    words = ["detector=ensemble", "+detector@detector.module.members.masked=masked"]
    gone = [f"~detector@detector.module.members.{name}" for name in ("denoising", "pca")]
    with initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(compose("train", [*words, *gone, "+phase=fit"]), resolve=True)
    assert sorted(config["detector"]["module"]["members"]) == ["masked", "places"]
    assert config["phase"]["steps"] == 1500


def test_an_ensemble_that_only_takes_steps_learns_nothing_at_once(made):
    assert made.fits
    assert not Ensemble({"denoising": DENOISING, "masked": MASKED}, []).fits
