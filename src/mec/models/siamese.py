"""The networks around the objective: student, predictor and teacher, or one network for both views."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mec.models.encoder import Encoder
from mec.models.heads import Predictor, Projector

Pair = tuple[Tensor, Tensor]
"""Of the two views."""


class Siamese(nn.Module):
    """Encoder and projector, and for the paper's asymmetric form a predictor and a teacher.

    ``forward(x1, x2)`` gives the arguments of the loss: ``((p1, p2), (z1, z2))``, or ``((z1, z2), None)`` for the
    symmetric form (no predictor, no teacher), where both codes carry gradient.

    The teacher is a copy of encoder and projector whose parameters follow the student's by an exponential
    moving average; its BatchNorm buffers are its own, for it runs in training mode, without gradient.
    """

    def __init__(self, encoder: Encoder, projector: Projector, predictor: Predictor | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor
        self.teacher: nn.ModuleList | None = None
        if predictor is not None:
            self.teacher = nn.ModuleList([copy.deepcopy(encoder), copy.deepcopy(projector)]).requires_grad_(False)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Pair, Pair | None]:
        """x1, x2: normalized images (m, c, h, w) -> codes (m, d) as the loss takes them."""
        return self.codes((self.encoder(x1), self.encoder(x2)), self.teacher_features(x1, x2))

    @torch.no_grad()
    def teacher_features(self, x1: Tensor, x2: Tensor) -> Pair | None:
        """What the teacher's encoder gives for x1 and x2; None where there is no teacher."""
        return None if self.teacher is None else (self.teacher[0](x1), self.teacher[0](x2))

    def codes(self, features: Pair, seen: Pair | None) -> tuple[Pair, Pair | None]:
        """Features (m, num_features) of the student's encoder and the teacher's -> codes as the loss takes them."""
        z1, z2 = self.projector(features[0]), self.projector(features[1])
        if self.predictor is None or self.teacher is None or seen is None:
            return (z1, z2), None
        with torch.no_grad():
            targets = self.teacher[1](seen[0]), self.teacher[1](seen[1])
        return (self.predictor(z1), self.predictor(z2)), targets

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, parameters only. Does nothing without a teacher."""
        if self.teacher is None:
            return
        student: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        teacher: list[Tensor] = [*self.teacher.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - momentum)
