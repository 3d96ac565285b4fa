"""MEC and five other methods of self-supervised learning, with lightly's losses and heads and published settings."""

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

from mec.coding import MECLoss
from mec.models.encoder import Encoder
from mec.models.heads import Predictor, Projector

Pairs = list[tuple[Tensor, Tensor]]


class Network(nn.Module):
    """Encoder and heads around a loss of pairs of codes.

    Without a predictor the pair is (z1, z2), both with gradient. With one the pairs are (p1, z2) and (p2, z1), z
    without gradient: of the network itself, or with a ``momentum`` of a teacher, its moving average.
    """

    def __init__(
        self,
        encoder: Encoder,
        criterion: Callable[[Tensor, Tensor], Tensor],
        projector: nn.Module,
        predictor: nn.Module | None = None,
        momentum: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.projector, self.predictor, self.momentum = encoder, projector, predictor, momentum
        self.criterion = criterion
        self.teacher: nn.Module | None = None
        if momentum is not None:
            self.teacher = copy.deepcopy(nn.Sequential(encoder, projector)).requires_grad_(False)

    def forward(self, x1: Tensor, x2: Tensor) -> Pairs:
        """Normalized images (m, c, h, w) of two views -> pairs of codes (m, d)."""
        z1, z2 = self.projector(self.encoder(x1)), self.projector(self.encoder(x2))
        if self.predictor is None:
            return [(z1, z2)]
        p1, p2 = self.predictor(z1), self.predictor(z2)
        if self.teacher is not None:
            with torch.no_grad():
                z1, z2 = self.teacher(x1), self.teacher(x2)
        return [(p1, z2.detach()), (p2, z1.detach())]

    def loss(self, pairs: Pairs) -> Tensor:
        """The mean over the pairs, in float32."""
        return torch.stack([self.criterion(p.float(), z.float()) for p, z in pairs]).mean()

    @torch.no_grad()
    def follow(self) -> None:
        """The teacher takes a step towards the network; before each training step, as in lightly's benchmark."""
        if self.teacher is None:
            return
        student = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_([*self.teacher.parameters()], student, 1 - self.momentum)


def mec_loss(distortion: float = 1 / 32, order: int | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """The default form, pooled, of a pair of codes."""
    loss = MECLoss(distortion, order)
    return lambda z1, z2: loss((z1, z2))


@dataclass(frozen=True)
class Method:
    """A method, how it is trained on CIFAR-10, and where that is published.

    lr: of SGD with momentum, for a batch of 256; it is scaled by batch / 256, as every source but one does.
    weight_decay: on all parameters, as in the sources. build: the network around an encoder, its heads at most so wide.
    trust: None, or LARS, SGD with a rate for each layer: see ``shorten``.
    """

    lr: float
    weight_decay: float
    published: str
    build: Callable[[Encoder, int], Network]
    trust: float | None = None


@torch.no_grad()
def shorten(weights: Iterable[Tensor], rate: float, decay: float, trust: float) -> None:
    """Clipped LARS (You et al. 2017): no step, decay included, is longer than ``trust`` of its layer's weights."""
    for w in weights:
        assert w.grad is not None
        longest = trust * w.norm() / (w.grad.norm() + decay * w.norm() + 1e-8)
        w.grad.add_(w, alpha=decay).mul_((longest / max(rate, 1e-8)).clamp(max=1))


def _mec(encoder: Encoder, widest: int) -> Network:
    w = min(2048, widest)
    return Network(encoder, mec_loss(), Projector(encoder.num_features, w, w))


def _simclr(encoder: Encoder, widest: int) -> Network:
    head = SimCLRProjectionHead(encoder.num_features, min(512, widest), min(128, widest))
    return Network(encoder, NTXentLoss(temperature=0.5), head)


def _simsiam(encoder: Encoder, widest: int) -> Network:
    w, norm = min(2048, widest), nn.BatchNorm1d
    projector = ProjectionHead([(encoder.num_features, w, norm(w), nn.ReLU()), (w, w, norm(w), None)])
    return Network(encoder, NegativeCosineSimilarity(), projector, SimSiamPredictionHead(w, w // 4, w))


def _byol(encoder: Encoder, widest: int) -> Network:
    hidden, out = min(1024, widest), min(256, widest)
    projector, predictor = (
        BYOLProjectionHead(encoder.num_features, hidden, out),
        BYOLPredictionHead(out, hidden, out),
    )
    return Network(encoder, NegativeCosineSimilarity(), projector, predictor, momentum=0.99)


def _barlow_twins(encoder: Encoder, widest: int) -> Network:
    w = min(2048, widest)
    head = ProjectionHead([(encoder.num_features, w, nn.BatchNorm1d(w), nn.ReLU()), (w, w, None, None)])
    return Network(encoder, BarlowTwinsLoss(lambda_param=5e-3), head)


def _vicreg(encoder: Encoder, widest: int) -> Network:
    w = min(2048, widest)
    return Network(encoder, VICRegLoss(25.0, 25.0, 1.0), VICRegProjectionHead(encoder.num_features, w, w))


def mec_with_teacher(encoder: Encoder, widest: int, distortion: float, order: int | None) -> Network:
    """The paper's asymmetric form: cross, predictor and teacher."""
    w = min(2048, widest)
    loss = MECLoss(distortion, order, "cross")
    heads = Projector(encoder.num_features, w, w), Predictor(w, w // 4)
    return Network(encoder, lambda p, z: loss((p, z)), *heads, momentum=0.99)


LIGHTLY = "lightly-ai/lightly, docs/source/getting_started/benchmarks/cifar10_benchmark.py"
METHODS = {
    "MEC": Method(
        0.1, 5e-4, "mec's recipe cifar10-resnet18: pooled, exact, distortion 1/32; head 2048-2048-2048", _mec
    ),
    # 0.06 for a batch of 128
    "SimCLR": Method(0.12, 5e-4, f"{LIGHTLY}: temperature 0.5, head 512-128", _simclr),
    # the paper and lightly agree on 0.06 for a batch of 512; lightly does not scale it
    "SimSiam": Method(
        0.03, 5e-4, f"SimSiam (2011.10566), appendix D, and {LIGHTLY}: head 2048-2048, predictor 512-2048", _simsiam
    ),
    "BYOL": Method(0.12, 5e-4, f"{LIGHTLY}: teacher 0.99, head 1024-256, predictor 1024-256", _byol),
    "Barlow Twins": Method(0.12, 5e-4, f"{LIGHTLY}: lambda 0.005, head 2048-2048", _barlow_twins),
    # lightly's table has no VICReg; plain SGD at this rate diverges in the first steps, so LARS, as published
    "VICReg": Method(
        0.3,
        1e-4,
        "vturrisi/solo-learn, scripts/pretrain/cifar/vicreg.yaml: weights 25, 25, 1, head 2048-2048-2048, LARS 0.02",
        _vicreg,
        trust=0.02,
    ),
}
