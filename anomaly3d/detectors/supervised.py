"""The upper control: a small 3D network that is shown which scans have a lesion and where, as no method here is."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector, Findings

LARGEST = 8  # places whose mean evidence counts
WEIGHT, RARE = 3.0, 10.0  # of the loss at places, and there of a place with a lesion
RARE_LOGIT = -3.0  # few places hold a lesion
SMALLEST = 64  # voxels a side from which on bfloat16 is used


def layer(before: int, after: int, stride: int = 1) -> nn.Sequential:
    """Convolution, GroupNorm, ReLU."""
    return nn.Sequential(nn.Conv3d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.ReLU())


class Supervised(Detector):
    """A pyramid of features of a volume and its difference to its mirror image.

    Its scales together give a logit for each place of 4^3 voxels; the coarsest features and the strongest places give
    that of the scan.

    Args:
        width: channels of the first layer.
    """

    title = "a network that was shown lesions"
    role = "upper"
    learns_from = "labelled"
    taught_with = ("lesion_mask",)

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        self.places = nn.Sequential(layer(2, a, 2), layer(a, a), layer(a, b, 2), layer(b, b), layer(b, b))
        self.coarse = nn.Sequential(layer(b, c, 2), layer(c, c))
        self.coarsest = nn.Sequential(layer(c, c, 2), layer(c, c))
        self.local = nn.Sequential(layer(b + 2 * c, b), nn.Conv3d(b, 1, 1))
        self.head = nn.Linear(2 * c + 2, 1)
        nn.init.constant_(self.local[1].bias, RARE_LOGIT)  # type: ignore[arg-type]

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of volumes ``(B, 1, D, H, W)``: of the scan ``(B,)``, of its places ``(B, 1, D / 4, H / 4, W / 4)``."""
        fine = self.places(torch.cat([x, x - x.flip(2)], 1))
        coarse = self.coarse(fine)
        coarsest = self.coarsest(coarse)
        scales = [fine, *(F.interpolate(f, size=fine.shape[2:]) for f in (coarse, coarsest))]
        local = self.local(torch.cat(scales, 1))
        places, flat = local.flatten(1), coarsest.flatten(2)
        strongest = places.topk(min(LARGEST, places.shape[1]), 1).values.mean(1, keepdim=True)
        everywhere = F.softplus(places).mean(1, keepdim=True).log()
        return self.head(torch.cat([flat.mean(2), flat.amax(2), strongest, everywhere], 1))[:, 0], local

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B,)`` of volumes ``(B, 1, D, H, W)``, the mean over both sides."""
        return (self.logits(x)[0] + self.logits(x.flip(2))[0]) / 2

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the scans' labels, and of their places where it is known which of them hold a lesion.

        Volumes are mirrored and moved by a voxel at random. An abnormal scan without a mask teaches its label only.
        """
        x, lesion = augment(batch["image"], batch["lesion_mask"].float())
        # not on smaller volumes: the bfloat16 weight gradient of a 3-wide convolution on 2^3 voxels reads unwritten
        # memory (torch 2.13, CPU)
        with torch.autocast(
            x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and min(x.shape[2:]) >= SMALLEST
        ):
            # validation scans of unknown label are taken for healthy, as by all methods
            return {"loss": self.cross_entropy(x, lesion, batch["label"].nan_to_num())}

    def cross_entropy(self, x: Tensor, lesion: Tensor, ill: Tensor) -> Tensor:
        """The loss of volumes ``x`` and masks ``lesion (B, 1, D, H, W)`` with labels ``ill (B,)``, 0 or 1."""
        scan, local = self.logits(x)
        known = (ill == 0) | lesion.flatten(1).any(1)
        truth = F.adaptive_max_pool3d(lesion, local.shape[2:])
        rare = torch.tensor(RARE, device=x.device)
        at_places = F.binary_cross_entropy_with_logits(local.float(), truth, pos_weight=rare, reduction="none")
        of_scans = F.binary_cross_entropy_with_logits(scan.float(), ill)
        return of_scans + WEIGHT * (at_places.flatten(1).mean(1) * known).mean()

    def examine(self, batch: Batch) -> Findings:
        return Findings({"total": self(batch["image"])})


def augment(x: Tensor, lesion: Tensor) -> tuple[Tensor, Tensor]:
    """Volumes and masks ``(B, 1, D, H, W)``, each scan mirrored by chance, all moved by up to a voxel."""
    mirrored = (dealt(torch.rand, len(x)) < 0.5).view(-1, 1, 1, 1, 1).to(x.device)
    step = torch.randint(-1, 2, (3,)).tolist()
    moved = [torch.where(mirrored, v.flip(2), v).roll(step, (2, 3, 4)) for v in (x, lesion)]
    return moved[0], moved[1]
