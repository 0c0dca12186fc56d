"""The Bayesian autoencoder of Pawlowski et al. 2018: dropout stays on, and many passes give mean and spread."""

from typing import Self

import torch
from torch import Tensor, nn

from anomaly3d.data.batch import Batch
from anomaly3d.data.sampler import dealt
from anomaly3d.detectors.base import Detector, Findings
from anomaly3d.detectors.brain import brain_of, mean_inside, residual_findings
from anomaly3d.networks.autoencoder import Autoencoder

SEED = 0  # of the dropout in ``examine``
SEEDS = 2**31


class BayesianAutoencoder(Detector):
    """Monte Carlo dropout (Gal and Ghahramani 2016): each of ``samples`` passes leaves out other activations.

    Every scan is examined by the same ``samples`` thinned networks, so its findings depend on nothing but the scan.

    Args:
        width, latent, resolution, spatial: of ``Autoencoder``.
        dropout: probability, in every hidden layer.
        samples: passes, at least 2.
        noise: spread of a voxel that no pass explains, 1 / sqrt(tau) of Gal and Ghahramani, in units of [-1, 1].

    Raises:
        ValueError: dropout, samples or noise that give no spread.
    """

    title = "Bayesian autoencoder"

    def __init__(
        self,
        width: int,
        latent: int,
        resolution: int,
        dropout: float,
        samples: int,
        noise: float,
        spatial: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < dropout < 1 or samples < 2 or noise <= 0:
            given = f"{dropout}, {samples} and {noise}"
            raise ValueError(f"dropout must lie between 0 and 1, samples be 2 or more, noise above 0, not {given}")
        self.net = Autoencoder(width, latent, resolution, spatial, dropout=dropout)
        self.samples, self.noise = samples, noise

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``, but dropout stays on."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.Dropout):
                layer.training = True
        return self

    def passes(self, scan: Tensor) -> Tensor:
        """All reconstructions of one scan ``(1, D, H, W)``: ``(samples, 1, D, H, W)``."""
        return self.thinned(scan.expand(self.samples, -1, -1, -1, -1), SEED)

    def thinned(self, x: Tensor, seed: int) -> Tensor:
        """Reconstructions of ``(B, 1, D, H, W)`` by the networks that a seed leaves."""
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(seed)
            return self.net(x)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Mean squared residual over the brain, of one pass a scan, each by a seed of its own."""
        x = batch["image"]
        seeds = dealt(lambda volumes: torch.randint(SEEDS, (volumes,)), len(x)).tolist()
        passes = torch.cat([self.thinned(x[i : i + 1], seed) for i, seed in enumerate(seeds)])
        return {"loss": mean_inside((x - passes).square(), brain_of(batch)).mean()}

    def examine(self, batch: Batch) -> Findings:
        """Residual of the passes' mean; map ``deviation``: it over the predictive spread."""
        x = batch["image"]
        means, variances = [], []
        for scan in x:
            passes = self.passes(scan)
            means.append(passes.mean(0))
            variances.append(passes.var(0))
        found = residual_findings(batch, torch.stack(means))
        assert found.reconstruction is not None
        spread = (torch.stack(variances) + self.noise**2).sqrt()
        return Findings(found.scores, found.reconstruction, {"deviation": (x - found.reconstruction) / spread})
