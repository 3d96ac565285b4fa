"""The networks trained by the objective: encoder, projector, predictor and teacher, as in the paper's code."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mec.models.encoder import Encoder

Pair = tuple[Tensor, Tensor]  # one for each of the two views


def _hidden_layer(inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield nn.Linear(inputs, outputs, bias=False)
    yield nn.BatchNorm1d(outputs)
    yield nn.ReLU(inplace=True)


class Projector(nn.Sequential):
    """MLP (n, inputs) -> (n, outputs): two hidden layers, then Linear with a frozen bias and BatchNorm without affine.

    The bias has no effect before a BatchNorm. It exists, frozen, because the published checkpoints contain it.
    """

    def __init__(self, inputs: int, hidden: int = 2048, outputs: int = 2048) -> None:
        last_linear = nn.Linear(hidden, outputs)
        last_linear.bias.requires_grad_(False)
        super().__init__(
            *_hidden_layer(inputs, hidden),
            *_hidden_layer(hidden, hidden),
            last_linear,
            nn.BatchNorm1d(outputs, affine=False),
        )


class Predictor(nn.Sequential):
    """MLP (n, width) -> (n, width) with a bottleneck, which prevents it from learning the identity."""

    def __init__(self, width: int = 2048, hidden: int = 512) -> None:
        super().__init__(*_hidden_layer(width, hidden), nn.Linear(hidden, width))


class Siamese(nn.Module):
    """Encoder and projector, with a predictor and a teacher in the paper's asymmetric form.

    ``forward(x1, x2)`` returns the arguments of the loss: ``((p1, p2), (z1, z2))``, or ``((z1, z2), None)`` for the
    symmetric form (no predictor, no teacher), where gradients flow through both codes. The teacher is an exponential
    moving average of encoder and projector. It runs in training mode without gradient and therefore keeps BatchNorm
    buffers of its own.
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
        """Return the codes (m, d) of two views, normalized images (m, c, h, w), as the loss takes them."""
        return self.codes((self.encoder(x1), self.encoder(x2)), self.teacher_features(x1, x2))

    @torch.no_grad()
    def teacher_features(self, x1: Tensor, x2: Tensor) -> Pair | None:
        """Return the features of the teacher's encoder for both views; None without a teacher."""
        return None if self.teacher is None else (self.teacher[0](x1), self.teacher[0](x2))

    def codes(self, student_features: Pair, teacher_features: Pair | None) -> tuple[Pair, Pair | None]:
        """Return the codes, as the loss takes them, of encoder features (m, num_features) of student and teacher."""
        z1, z2 = self.projector(student_features[0]), self.projector(student_features[1])
        if self.predictor is None or self.teacher is None or teacher_features is None:
            return (z1, z2), None
        with torch.no_grad():
            targets = self.teacher[1](teacher_features[0]), self.teacher[1](teacher_features[1])
        return (self.predictor(z1), self.predictor(z2)), targets

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Set teacher = momentum * teacher + (1 - momentum) * student, parameters only; no-op without a teacher."""
        if self.teacher is None:
            return
        student: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        teacher: list[Tensor] = [*self.teacher.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - momentum)
