"""A loss of your own beside MEC: VICReg in 20 lines, the same recipe, data and seeds.

    python examples/own_objective.py [--epochs 12] [--seeds '[0, 1]'] [--out runs/own-objective]

Pretrains with both on the 1,347 training digits of scikit-learn, and evaluates each encoder on 450 test digits, by kNN
and linear probe. Prints the table of ``mec.compare``: means and standard deviations over the seeds. Runs are stored in
``--out``, if you pass one: interrupted and started again, the script continues where it was. Takes a minute
and a half on one CPU core.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace

import torch
from jsonargparse import auto_cli
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import mse_loss, relu

import mec


class VICReg(nn.Module):
    """VICReg (Bardes et al. 2022, arXiv 2105.04906) of two views, for one process: mec gathers the codes of all.

    Args:
        invariance: weight of the distance of the views.
        variance: weight of features whose standard deviation is below 1.
        covariance: weight of the squared covariances of features.
    """

    batch_norm = False  # the published projector ends with a linear layer

    def __init__(self, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def forward(self, codes: Sequence[Tensor]) -> Tensor:
        loss = self.invariance * mse_loss(*codes)
        for z in codes:
            covariance = z.T.cov()
            variances = covariance.diag()
            loss = loss + self.variance * relu(1 - (variances + 1e-4).sqrt()).mean() / 2
            loss = loss + self.covariance * (covariance - variances.diag()).square().sum() / len(covariance)
        return loss

    def health(self, codes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return a further column of metrics.csv: the mean standard deviation of the features, near 1 at the end."""
        return {"deviation": torch.stack([z.std(0).mean() for z in codes]).mean()}


def main(epochs: int = 12, seeds: Sequence[int] = (0, 1), out: str | None = None, subsample: int | None = None) -> None:
    """Pretrain with both losses and every seed, and print a table.

    Args:
        epochs: epochs of each run.
        seeds: seeds of weights, order and views.
        out: folder of the runs and of a report; none: a temporary one.
        subsample: use every n-th image for pretraining; none: all.
    """
    recipe = replace(mec.load_recipe("digits"), epochs=epochs, subsample=subsample, workers=0)
    variants = {"MEC": {}, "my VICReg": {"objective": VICReg()}}
    with tempfile.TemporaryDirectory() as folder:
        comparison = mec.compare("digits", out or folder, variants, recipe, seeds)
        Console().print(comparison.table())
        run = mec.Run(comparison.folder / "my VICReg" / f"seed={seeds[0]}")
        print(f"{run.recipe().parts['objective']}: deviation {run.metrics()[-1]['deviation']:.2f}")


if __name__ == "__main__":
    auto_cli(main)
