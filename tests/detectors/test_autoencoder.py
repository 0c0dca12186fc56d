import pytest
import torch

from anomaly3d.detectors.autoencoder import ConvolutionalAutoencoder
from tests.detectors.toys import Answers, batch


@pytest.fixture
def detector():
    return ConvolutionalAutoencoder(8, 4, 16)


def test_loss_and_score_are_the_mean_absolute_residual_of_the_brain(detector):
    detector.net = Answers(lambda x: torch.full_like(x, 0.1))
    scans = batch()
    inside = torch.stack([x[b > 0].sub(0.1).abs().mean() for x, b in zip(scans["image"], scans["brain"], strict=True)])
    torch.testing.assert_close(detector.examine(scans).scores["total"], inside)
    torch.testing.assert_close(detector.loss(scans)["loss"], inside.mean())


def test_what_it_does_not_reconstruct_is_what_is_found(detector):
    """Its code holds each scan's healthy part exactly; a lesion of 0.5 in 30 voxels is left."""
    healthy, ill = batch(), batch()
    ill["image"][:, :, 6:9, 10:15, 3:5] += 0.5
    detector.net = Answers(lambda x: healthy["image"])
    found = detector.examine(ill)
    assert found.scores["total"].tolist() == pytest.approx([15 / float(healthy["brain"][0].sum())] * 3)
    residual = ill["image"] - found.reconstruction
    assert residual[:, :, 6:9, 10:15, 3:5].min() > 0.49
    assert residual.abs().sum() == pytest.approx(3 * 15, rel=1e-5)
