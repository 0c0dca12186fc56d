"""Healthy volumes changed on purpose, in training: anomalies to be found or taken out, and harmless changes.

All functions take one volume ``x (D, H, W)`` in [-1, 1] with its brain mask, bool, and draw from ``rng``. Axes run from
left to right, from back to front and from below upwards. The kinds are of three sources: what any imaging
knows (a lump, a patch of another scan, displaced tissue), where blood may lie about a brain (a shell under its surface,
fluid and fissures that are no longer dark), and which densities it may have. Nothing of the phantom is used.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly3d.data.batch import Batch
from anomaly3d.data.pseudo_anomalies import KINDS
from anomaly3d.data.sampler import dealt

SHARE = (6e-5, 1.3e-2)  # of all voxels, log-uniform: 0.3 to 60 ml of a head
EDGE = (0.5, 3.0)  # voxels, softness of a rim
DENSITIES = ((0.15, 0.7), (-0.25, 0.05), (-0.6, -0.3))  # dense, as dense as brain, dark: 49 to 82, 25 to 43, 4 to 22 HU
DENSE = 0.5  # share of anomalies that are dense; the others are half isodense, half dark
THICKNESS = (0.012, 0.1)  # of a shell, of the longest side, log-uniform: 2 to 18 mm
WIDTH = (0.12, 0.5)  # of a shell's radius
FLUID = -0.4  # below it lies fluid: 16 HU
PUSH = (0.15, 0.45)  # of a radius, by which tissue is pushed at most
SEEN = 0.05  # change of the local mean from which an anomaly is labelled: 3 HU
CALCIFIED = 0.75  # 85 HU
SEEDS = 2**62


def uniform(low: float, high: float, rng: torch.Generator) -> float:
    """A number between two."""
    return low + (high - low) * float(torch.rand((), generator=rng))


def log_uniform(low: float, high: float, rng: torch.Generator) -> float:
    """A number between two, as often near the one as near the other."""
    return float(low * (high / low) ** float(torch.rand((), generator=rng)))


def place_in(where: Tensor, rng: torch.Generator) -> Tensor | None:
    """A voxel ``(3,)`` of a mask, None where it is empty."""
    inside = where.flatten().nonzero()[:, 0]
    if not len(inside):
        return None
    flat = int(inside[int(torch.randint(len(inside), (), generator=rng))])
    return torch.tensor(
        [flat // (where.shape[1] * where.shape[2]), flat // where.shape[2] % where.shape[1], flat % where.shape[2]]
    )


def offsets(x: Tensor, centre: Tensor) -> list[Tensor]:
    """Distance of each voxel from a place along each axis, in voxels; broadcast to ``x``'s shape."""
    lines = [torch.arange(n, device=x.device) - int(c) for n, c in zip(x.shape, centre, strict=True)]
    return [line.float().view([-1 if i == axis else 1 for i in range(3)]) for axis, line in enumerate(lines)]


def blurred(values: Tensor, width: int) -> Tensor:
    """Mean over cubes of an odd ``width``; what lies beyond the border is not counted."""
    return F.avg_pool3d(values[None, None], width, 1, width // 2, count_include_pad=False)[0, 0]


def local_mean(x: Tensor, brain: Tensor, width: int = 5) -> Tensor:
    """Mean over the brain's voxels of cubes."""
    inside = brain.float()
    return blurred(x * inside, width) / blurred(inside, width).clamp(min=1e-3)


def smooth_noise(x: Tensor, voxels: float, rng: torch.Generator) -> Tensor:
    """Noise of spread about 1 that changes over so many voxels."""
    nodes = [max(2, min(n, round(n / max(voxels, 1)) + 1)) for n in x.shape]
    points = torch.randn([1, 1, *nodes], generator=rng).to(x.device)
    return 1.5 * F.interpolate(points, size=x.shape, mode="trilinear", align_corners=True)[0, 0]


def filled(x: Tensor, brain: Tensor, share: Tensor, rng: torch.Generator) -> Tensor:
    """Tissue replaced, to a share at each voxel, by one of ``DENSITIES`` that keeps the scan's own texture."""
    which = 0 if uniform(0, 1, rng) < DENSE else 1 + int(torch.randint(2, (), generator=rng))
    density = uniform(*DENSITIES[which], rng)
    return x + share * (density - local_mean(x, brain))


def depth_of(brain: Tensor, deepest: int) -> Tensor:
    """How many voxels deep each voxel lies under the brain's surface, 1 at it and ``deepest`` at most; 0 outside."""
    left = brain[None, None].float()
    depth = left.clone()
    for _ in range(deepest - 1):
        left = -F.max_pool3d(-F.pad(left, (1,) * 6), 3, 1)
        depth += left
    return depth[0, 0]


def radius_of(x: Tensor, rng: torch.Generator) -> float:
    """Radius in voxels of a ball of a volume of ``SHARE``."""
    return float((0.75 / torch.pi * log_uniform(*SHARE, rng) * x.numel()) ** (1 / 3))


def blob(x: Tensor, centre: Tensor, radius: float, rng: torch.Generator) -> Tensor:
    """A share between 0 and 1 at each voxel: an ellipsoid with an uneven, more or less soft rim."""
    radii = [radius * float(torch.exp(0.3 * torch.randn((), generator=rng))) for _ in range(3)]
    distance = sum((d / r) ** 2 for d, r in zip(offsets(x, centre), radii, strict=True))
    assert isinstance(distance, Tensor)
    depth = 1 - distance.sqrt() + uniform(0, 0.5, rng) * smooth_noise(x, radius / 1.5, rng)
    return (depth * radius / uniform(*EDGE, rng)).clamp(0, 1)


def lump(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> Tensor:
    """Tissue of another density somewhere in the brain."""
    centre = place_in(brain, rng)
    return x if centre is None else filled(x, brain, blob(x, centre, radius_of(x, rng), rng) * brain, rng)


def shell(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> Tensor:
    """A crescent of another density under the brain's surface."""
    side = max(x.shape)
    thickness = log_uniform(*THICKNESS, rng) * side
    centre = place_in(depth_of(brain, 2) == 1, rng)
    if centre is None:
        return x
    distance = sum((d / (uniform(*WIDTH, rng) * side)) ** 2 for d in offsets(x, centre))
    assert isinstance(distance, Tensor)
    uneven = 1 + 0.3 * smooth_noise(x, 0.1 * side, rng)
    depth = depth_of(brain, math.ceil(thickness * float(uneven.max()) + EDGE[1]) + 1)  # no rim reaches so deep
    share = (
        ((thickness * (1 - distance).clamp(min=0) * uneven - depth) / uniform(*EDGE, rng) + 1).clamp(0, 1)
        * (distance < 1)
        * brain
    )
    return filled(x, brain, share, rng)


def fluid(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> Tensor:
    """Fluid that is denser than it should be, in all of a place or, as blood settles, at its back."""
    dark = (depth_of(brain, 4) == 4) & (blurred(x, 3) < FLUID)
    centre = place_in(dark, rng)
    if centre is None:
        return x
    radius = uniform(0.05, 0.2, rng) * max(x.shape)
    along = offsets(x, centre)
    near = sum((d / radius) ** 2 for d in along) < 1
    if uniform(0, 1, rng) < 0.5:
        near = near & (along[1] < uniform(-0.5, 0.5, rng) * radius)
    density, part = uniform(*DENSITIES[0], rng), uniform(0.4, 1, rng)
    return x + part * (dark & near) * (density - x)


def fissure(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> Tensor:
    """Furrows that are no longer dark: blood among the folds raises them to the brain's density or beyond."""
    centre = place_in(brain, rng)
    if centre is None:
        return x
    inside = torch.where(brain, x, x.new_tensor(-1.0))[None, None]
    closed = -F.max_pool3d(-F.max_pool3d(inside, 5, 1, 2), 5, 1, 2)
    groove = (blurred(closed[0, 0], 3) - x).clamp(min=0) * brain
    radius = uniform(0.06, 0.2, rng) * max(x.shape)
    return x + blob(x, centre, radius, rng) * uniform(0.7, 2.0, rng) * groove


def displaced(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> Tensor:
    """Tissue pushed away from a place, as something that grows there would."""
    centre = place_in(brain, rng)
    if centre is None:
        return x
    radius, push = uniform(0.08, 0.25, rng) * max(x.shape), uniform(*PUSH, rng)
    along = offsets(x, centre)
    r = sum((d / radius) ** 2 for d in along)
    assert isinstance(r, Tensor)
    back = -push * (1 - r).clamp(min=0) ** 2  # where the tissue of each voxel was, as a share of its distance
    moved = sampled(x, [(d + int(c) + back * d) for d, c in zip(along, centre, strict=True)])
    return torch.where(brain & (moved > -0.98), moved, x)


def patch(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> Tensor:
    """A piece of another scan from another place."""
    donor = donors[int(torch.randint(len(donors), (), generator=rng))].to(x.device)
    centre, source = place_in(brain, rng), place_in(donor > -1, rng)
    if centre is None or source is None:
        return x
    moved = donor.roll((centre - source).tolist(), (0, 1, 2))
    share = blob(x, centre, radius_of(x, rng), rng) * brain * (moved > -0.98)
    return x + share * (moved - x)


def sampled(x: Tensor, at: Sequence[Tensor]) -> Tensor:
    """``x`` at other places, in voxels along each axis, linearly interpolated; -1 beyond the border."""
    places = torch.broadcast_tensors(*at)
    scaled = [2 * p / (n - 1) - 1 for p, n in zip(places, x.shape, strict=True)]
    grid = torch.stack(scaled[::-1], -1)[None]  # grid_sample names the last axis first
    return F.grid_sample((x + 1)[None, None], grid, align_corners=True)[0, 0] - 1


PASTED: dict[str, Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]] = {
    "lump": lump,
    "shell": shell,
    "fluid": fluid,
    "fissure": fissure,
    "displaced": displaced,
    "patch": patch,
}
"""What a volume may get, by name. ``donors (N, D, H, W)`` are other healthy volumes, which ``patch`` takes from."""


def left_out(kinds: Sequence[str]) -> tuple[str, ...]:
    """The kinds of pasted anomalies of validation scans that are none of these, by which to judge who learned them.

    Raises:
        ValueError: an unknown kind, or none that is left out.
    """
    if not set(kinds) <= set(PASTED):
        raise ValueError(f"kinds must name some of {', '.join(PASTED)}, not {list(kinds)}")
    rest = tuple(kind for kind in KINDS if not kinds or not kind.endswith(tuple(kinds)))
    if not rest:
        raise ValueError(
            f"kinds={list(kinds)} leaves out none of {', '.join(KINDS)}, by which to judge what was learned"
        )
    return rest


def with_anomaly(x: Tensor, brain: Tensor, donors: Tensor, kind: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A volume with an anomaly of ``PASTED``, and where it can be seen, bool: the local mean changed by ``SEEN``."""
    changed = torch.where(brain, PASTED[kind](x, brain, donors, rng).clamp(-0.999, 1), x)
    difference = changed - x
    seen = (blurred(difference, 3).abs() > SEEN) & (difference.abs() > SEEN / 2)
    return changed, seen & brain


def harmless(x: Tensor, brain: Tensor, donors: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A volume and its mask after changes that mean nothing: the other side, another pose (5 degrees, 4 mm), calcified
    places of another healthy scan, blur from slice to slice, HU +- 3, contrast +- 3 %, noise."""

    def by_chance(share: float) -> bool:
        return uniform(0, 1, rng) < share

    if by_chance(0.5):
        x, brain = x.flip(0), brain.flip(0)
    if by_chance(0.3):
        donor = donors[int(torch.randint(len(donors), (), generator=rng))].to(x.device)
        x = torch.where(brain & (donor > CALCIFIED), torch.maximum(x, donor), x)
    if by_chance(0.5):
        x, brain = posed(x, brain, rng)
    if by_chance(0.3):
        side = uniform(0, 0.2, rng)
        above, below = (F.pad(x, pad, value=-1.0) for pad in ((0, 1), (1, 0)))
        x = torch.where(brain, (1 - 2 * side) * x + side * (above[..., 1:] + below[..., :-1]), x)
    moved = x * uniform(0.97, 1.03, rng) + uniform(-0.05, 0.05, rng)
    if by_chance(0.5):
        moved = moved + uniform(0, 0.06, rng) * torch.randn(x.shape, generator=rng).to(x.device)
    return torch.where(brain, moved.clamp(-0.999, 1), x), brain


def posed(x: Tensor, brain: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turned by up to 5 degrees about each axis and shifted by up to 4 mm, of the box of 170 mm."""
    turn = torch.eye(3)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        angle = torch.tensor(uniform(-1, 1, rng) * 5 * torch.pi / 180)
        step = torch.eye(3)
        step[a, a] = step[b, b] = angle.cos()
        step[a, b], step[b, a] = -angle.sin(), angle.sin()
        turn = turn @ step
    shift = torch.tensor([[uniform(-1, 1, rng) * 4 / 85] for _ in range(3)])
    grid = F.affine_grid(torch.cat([turn, shift], 1)[None], [1, 1, *x.shape], align_corners=True).to(x.device)
    moved = F.grid_sample((x + 1)[None, None], grid, align_corners=True)[0, 0] - 1
    inside = F.grid_sample(brain[None, None].float(), grid, mode="nearest", align_corners=True)[0, 0] > 0
    return torch.where(inside, moved, x.new_tensor(-1.0)), inside


def taught(
    x: Tensor, brain: Tensor, donors: Tensor, kinds: Sequence[str], rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A healthy volume for a training step, the same with anomalies, where, bool, and the brain: in every fourth there
    is none, else one or two. Harmless changes are in all."""
    healthy, brain = harmless(x, brain, donors, rng)
    spoiled, where = healthy, torch.zeros_like(brain)
    for share in (0.75, 0.25):
        if uniform(0, 1, rng) < share:
            kind = kinds[int(torch.randint(len(kinds), (), generator=rng))]
            spoiled, seen = with_anomaly(spoiled, brain, donors, kind, rng)
            where = where | seen
        else:
            break
    return healthy, spoiled, where, brain


def taught_batch(
    batch: Batch, donors: Tensor, kinds: Sequence[str], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``taught`` for each volume of a batch: ``(B, 1, D, H, W)`` four times.

    Args:
        donors: ``(N, D, H, W)``.
        generator: in the same state on every process.
    """
    seeds = dealt(lambda volumes: torch.randint(SEEDS, (volumes,), generator=generator), len(batch["image"]))
    made = [
        taught(x[0], brain[0] > 0, donors, kinds, torch.Generator().manual_seed(int(seed)))
        for x, brain, seed in zip(batch["image"], batch["brain"], seeds, strict=True)
    ]
    healthy, spoiled, where, brain = (torch.stack(part)[:, None] for part in zip(*made, strict=True))
    return healthy, spoiled, where, brain
