"""Small batches for methods that judge the brain, and networks whose answer is known."""

import torch
from torch import nn

SHAPE = (16, 24, 8)


def batch(count=3, seed=0, shape=SHAPE):
    """Smooth volumes inside an ellipsoid, exactly -1 outside, which differ from scan to scan."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij")
    brain = sum(axis**2 for axis in axes) < 0.8
    waves = sum(torch.randn(count, 1, 1, 1, generator=generator) * torch.sin(2 * axis) for axis in axes)
    noise = 0.02 * torch.randn(count, *shape, generator=generator)
    x = torch.where(brain, (0.2 * waves + noise).clamp(-0.9, 0.9), -1.0)
    masks = brain.expand(count, 1, *shape).to(torch.uint8)
    return {"image": x[:, None], "brain": masks, "scan_id": [f"s{n}" for n in range(count)]}


class Answers(nn.Module):
    """A network that gives ``answer(input)`` and remembers its inputs."""

    def __init__(self, answer):
        super().__init__()
        self.answer, self.seen = answer, []

    def forward(self, x):
        self.seen.append(x)
        return self.answer(x)
