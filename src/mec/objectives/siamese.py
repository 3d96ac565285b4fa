"""SimSiam and BYOL: the cosine of predictions and targets, with nothing that spreads the codes."""

from __future__ import annotations

from torch import Tensor

from mec.objectives.base import Objective, mean_cosine


class SimSiam(Objective):
    """SimSiam (Chen and He 2021, arXiv 2011.10566, Eq. 1 and 4): minus the mean cosine of predictions p and codes z.

        -1/2 cos(p1, stopgrad(z2)) - 1/2 cos(p2, stopgrad(z1))

    The predictor and the missing gradient of z, not the loss, prevent a collapse: equal codes of all images minimize
    it. The paper has two views; with more, the loss is the mean over all ordered pairs of views.
    """

    targets = "student"
    predictor = True

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        return -mean_cosine(codes, targets)


class BYOL(Objective):
    """BYOL (Grill et al. 2020, arXiv 2006.07733, Eq. 2): squared distance of predictions p and codes z of a teacher.

        |p1 - z2|^2 + |p2 - z1|^2 = 4 - 2 cos(p1, z2) - 2 cos(p2, z1),   p and z scaled to length 1

    The predictor and the moving average, not the loss, prevent a collapse: equal codes of all images minimize it. The
    paper has two views; with more, the loss is the mean over all pairs of views.
    """

    targets = "teacher"
    predictor = True
    batch_norm = False

    def loss(self, codes: list[Tensor], targets: list[Tensor]) -> Tensor:
        return 4 - 4 * mean_cosine(codes, targets)
