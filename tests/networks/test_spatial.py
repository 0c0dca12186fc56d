import torch

from anomaly3d.networks.spatial import SpatialDecoder, SpatialEncoder


def test_a_place_of_the_code_belongs_to_its_place_in_the_volume():
    """Without norms, which look at everything, a change far away changes no code, and a code only what is near."""
    torch.manual_seed(0)
    encoder, decoder = SpatialEncoder(4, 2, 3, "none"), SpatialDecoder(4, 2, 3, "none")
    x = torch.randn(1, 1, 32, 16, 12)
    code = encoder(x)
    assert code.shape == (1, 3, 8, 4, 3)
    changed = x.clone()
    changed[:, :, :4] += 1
    moved = (encoder(changed) - code).abs().amax((0, 1, 3, 4))
    assert moved[0] > 0.01
    assert not moved[3:].any()
    volume = decoder(code)
    assert volume.shape == x.shape
    assert volume.abs().max() <= 1
    code[:, :, 0] += 1
    moved = (decoder(code) - volume).abs().amax((0, 1, 3, 4))
    assert moved[0] > 1e-3
    assert not moved[12:].any()
