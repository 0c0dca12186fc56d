import copy

import pytest
import torch

from anomaly3d.detectors.fanogan import FAnoGAN, ModelConfig
from anomaly3d.detectors.losses import gradient_norm, gradient_penalty
from anomaly3d.scoring.inference import round_weights


@pytest.fixture
def pair():
    """A detector, and the same with its activations computed again."""
    torch.manual_seed(0)
    detector = FAnoGAN(ModelConfig(4, 6, 16, "group", "none", "group", "tanh", 3))
    again = copy.deepcopy(detector)
    again.recompute_activations()
    return detector, again


def gradients(loss, network):
    return torch.autograd.grad(loss, list(network.parameters()), materialize_grads=True)


def test_recomputed_activations_give_the_same_gradients(pair):
    x = torch.randn(2, 1, 16, 16, 16)
    sides = []
    for detector in pair:
        loss = detector.distances(x, detector.reconstruct(x))["total"].mean()
        sides.append((loss, gradients(loss, detector.encoder)))
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=0)


def test_so_do_gradients_of_gradients(pair):
    x = torch.randn(2, 1, 16, 16, 16)
    sides = [gradients(gradient_penalty(gradient_norm(d.critic, x)), d.critic.trunk) for d in pair]
    torch.testing.assert_close(sides[0], sides[1], rtol=0, atol=0)


def test_fewer_activations_are_kept(pair):
    """Bytes that autograd holds for the backward pass."""
    held = []
    for detector in pair:
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            detector.encoder(torch.randn(2, 1, 16, 16, 16))
        held.append(total)
    assert held[1] < 0.8 * held[0]


def test_batch_norm_counts_a_batch_once():
    torch.manual_seed(0)
    plain = FAnoGAN(ModelConfig(4, 6, 16, "batch", "none", "batch", "tanh", 3))
    again = copy.deepcopy(plain)
    again.recompute_activations()
    x = torch.randn(2, 1, 16, 16, 16)
    for detector in (plain, again):
        detector.distances(x, detector.reconstruct(x))["total"].mean().backward()
    for (name, expected), found in zip(plain.named_buffers(), again.buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)
    assert {m.momentum for m in again.modules() if isinstance(m, torch.nn.BatchNorm3d)} == {0.1}


def test_weights_keep_their_names(pair):
    assert list(pair[0].state_dict()) == list(pair[1].state_dict())


def test_weights_rounded_once_score_as_mixed_precision_does(pair):
    detector, x = pair[0], torch.randn(2, 1, 16, 16, 16)
    rounded = copy.deepcopy(detector)
    round_weights(rounded, "bf16-mixed")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, found = (d.examine({"image": x}).scores for d in (detector, rounded))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    round_weights(detector, "32-true")
    assert detector.encoder.head.weight.dtype == torch.float32
