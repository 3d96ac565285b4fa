"""MEC and five other self-supervised methods, with lightly's losses and heads and published settings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    ProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    VICRegProjectionHead,
)
from torch import Tensor, nn

from mec.models.encoder import Encoder
from mec.models.siamese import Projector
from mec.objectives import create_objective

Pairs = list[tuple[Tensor, Tensor]]


class Network(nn.Module):
    """Encoder and heads with a loss on pairs of codes.

    Without a predictor there is one pair, (z1, z2), both with gradient. With a predictor the pairs are (p1, z2) and
    (p2, z1), z without gradient. If ``momentum`` is given, z comes from a teacher, the moving average of the network.
    ``schedule`` gets the fraction of the training that is done, before each step.
    """

    def __init__(
        self,
        encoder: Encoder,
        criterion: Callable[[Tensor, Tensor], Tensor],
        projector: nn.Module,
        predictor: nn.Module | None = None,
        momentum: float | None = None,
        schedule: Callable[[float], None] = lambda progress: None,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.encoder, self.projector, self.predictor, self.momentum = encoder, projector, predictor, momentum
        self.criterion = criterion
        self.teacher: nn.Module | None = None
        if momentum is not None:
            self.teacher = copy.deepcopy(nn.Sequential(encoder, projector)).requires_grad_(False)

    def forward(self, x1: Tensor, x2: Tensor) -> Pairs:
        """Return pairs of codes (m, d) of two views, normalized images (m, c, h, w)."""
        z1, z2 = self.projector(self.encoder(x1)), self.projector(self.encoder(x2))
        if self.predictor is None:
            return [(z1, z2)]
        p1, p2 = self.predictor(z1), self.predictor(z2)
        if self.teacher is not None:
            with torch.no_grad():
                z1, z2 = self.teacher(x1), self.teacher(x2)
        return [(p1, z2.detach()), (p2, z1.detach())]

    def loss(self, pairs: Pairs) -> Tensor:
        """Return the mean loss over the pairs, in float32."""
        return torch.stack([self.criterion(p.float(), z.float()) for p, z in pairs]).mean()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Move the teacher towards the network. Called before each training step, as in lightly's benchmark."""
        if self.teacher is None:
            return
        student = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_([*self.teacher.parameters()], student, 1 - self.momentum)


@dataclass(frozen=True)
class Method:
    """A method and its published settings for CIFAR-10.

    Attributes:
        lr: learning rate of SGD with momentum for a batch of 256; scaled by batch / 256, as in every source but one.
        weight_decay: on all parameters, as in the sources.
        source: where the settings are published, and those of loss and heads.
        build: returns the network for an encoder and the maximum width of the heads.
        trust_coefficient: of LARS, SGD with layer-wise learning rates (see ``apply_lars``); None: plain SGD.
    """

    lr: float
    weight_decay: float
    source: str
    build: Callable[[Encoder, int], Network]
    trust_coefficient: float | None = None


@torch.no_grad()
def apply_lars(weights: Iterable[Tensor], lr: float, weight_decay: float, trust_coefficient: float) -> None:
    """Scale gradients in place by clipped LARS (You et al. 2017).

    The norm of a step, weight decay included, is at most ``trust_coefficient`` times the norm of the layer's weights.
    """
    for w in weights:
        assert w.grad is not None
        max_lr = trust_coefficient * w.norm() / (w.grad.norm() + weight_decay * w.norm() + 1e-8)
        w.grad.add_(w, alpha=weight_decay).mul_((max_lr / max(lr, 1e-8)).clamp(max=1))


def _mec(encoder: Encoder, max_width: int) -> Network:
    w = min(2048, max_width)
    objective = create_objective("mec")
    projector = Projector(encoder.num_features, w, w)
    return Network(encoder, lambda z1, z2: objective((z1, z2)), projector, schedule=objective.schedule)


def _simclr(encoder: Encoder, max_width: int) -> Network:
    head = SimCLRProjectionHead(encoder.num_features, min(512, max_width), min(128, max_width))
    return Network(encoder, NTXentLoss(temperature=0.5), head)


def _simsiam(encoder: Encoder, max_width: int) -> Network:
    w, norm = min(2048, max_width), nn.BatchNorm1d
    projector = ProjectionHead([(encoder.num_features, w, norm(w), nn.ReLU()), (w, w, norm(w), None)])
    return Network(encoder, NegativeCosineSimilarity(), projector, SimSiamPredictionHead(w, w // 4, w))


def _byol(encoder: Encoder, max_width: int) -> Network:
    hidden, out = min(1024, max_width), min(256, max_width)
    projector = BYOLProjectionHead(encoder.num_features, hidden, out)
    predictor = BYOLPredictionHead(out, hidden, out)
    return Network(encoder, NegativeCosineSimilarity(), projector, predictor, momentum=0.99)


def _barlow_twins(encoder: Encoder, max_width: int) -> Network:
    w = min(2048, max_width)
    head = ProjectionHead([(encoder.num_features, w, nn.BatchNorm1d(w), nn.ReLU()), (w, w, None, None)])
    return Network(encoder, BarlowTwinsLoss(lambda_param=5e-3), head)


def _vicreg(encoder: Encoder, max_width: int) -> Network:
    w = min(2048, max_width)
    return Network(encoder, VICRegLoss(25.0, 25.0, 1.0), VICRegProjectionHead(encoder.num_features, w, w))


LIGHTLY = "lightly-ai/lightly, docs/source/getting_started/benchmarks/cifar10_benchmark.py"
METHODS = {
    "MEC": Method(0.1, 5e-4, "mec's default: exact, distortion from 1/2048 to 1/8; head 2048-2048-2048", _mec),
    # 0.06 for a batch of 128
    "SimCLR": Method(0.12, 5e-4, f"{LIGHTLY}: temperature 0.5, head 512-128", _simclr),
    # the paper and lightly agree on 0.06 for a batch of 512; lightly does not scale the learning rate
    "SimSiam": Method(
        0.03, 5e-4, f"SimSiam (2011.10566), appendix D, and {LIGHTLY}: head 2048-2048, predictor 512-2048", _simsiam
    ),
    "BYOL": Method(0.12, 5e-4, f"{LIGHTLY}: teacher 0.99, head 1024-256, predictor 1024-256", _byol),
    "Barlow Twins": Method(0.12, 5e-4, f"{LIGHTLY}: lambda 0.005, head 2048-2048", _barlow_twins),
    # lightly's benchmark has no VICReg; plain SGD diverges in the first steps at this lr, hence LARS, as published
    "VICReg": Method(
        0.3,
        1e-4,
        "vturrisi/solo-learn, scripts/pretrain/cifar/vicreg.yaml: weights 25, 25, 1, head 2048-2048-2048, LARS 0.02",
        _vicreg,
        trust_coefficient=0.02,
    ),
}
