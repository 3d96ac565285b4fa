"""The networks trained by the objective: encoder, projector, predictor and teacher, as in the paper's code."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from mec.coding.chunks import freeze_running_statistics
from mec.models.encoder import Encoder

PerView = tuple[Tensor, ...]  # one for each view


def _hidden_layer(inputs: int, outputs: int) -> Iterator[nn.Module]:
    yield nn.Linear(inputs, outputs, bias=False)
    yield nn.BatchNorm1d(outputs)
    yield nn.ReLU(inplace=True)


class Projector(nn.Sequential):
    """MLP (n, inputs) -> (n, outputs): two hidden layers, then Linear and, if ``batch_norm``, BatchNorm without affine.

    Before a BatchNorm the bias has no effect. It exists, frozen, because the published checkpoints contain it.
    """

    def __init__(self, inputs: int, hidden: int = 2048, outputs: int = 2048, batch_norm: bool = True) -> None:
        last_linear = nn.Linear(hidden, outputs)
        last_linear.bias.requires_grad_(not batch_norm)
        super().__init__(*_hidden_layer(inputs, hidden), *_hidden_layer(hidden, hidden), last_linear)
        if batch_norm:
            self.append(nn.BatchNorm1d(outputs, affine=False))


class Predictor(nn.Sequential):
    """MLP (n, width) -> (n, width) with a bottleneck, which prevents it from learning the identity."""

    def __init__(self, width: int = 2048, hidden: int = 512) -> None:
        super().__init__(*_hidden_layer(width, hidden), nn.Linear(hidden, width))


class Siamese(nn.Module):
    """Encoder and projector, and in an asymmetric form a predictor or targets, or both.

    ``forward(*views)`` returns the arguments of the objective. In the symmetric form these are the codes of the views
    and None: gradients flow through all codes. Otherwise they are codes, or predictions from them, and targets without
    gradient: the codes of a teacher, or those of the student itself. The teacher is an exponential moving average of
    encoder and projector. It runs in training mode without gradient and therefore keeps BatchNorm buffers of its own.

    The first ``num_global`` views are global. The others, local ones, which may be smaller, have no targets, and pass
    through the encoder together; the running statistics of BatchNorm are those of the global views.

    Args:
        encoder: images -> features.
        projector: features -> codes.
        predictor: codes -> predictions of the targets.
        targets: "student" or "teacher"; None: a teacher if there is a predictor, else none.
        num_global: number of global views; None: all views are global.
    """

    def __init__(
        self,
        encoder: Encoder,
        projector: Projector,
        predictor: Predictor | None = None,
        targets: Literal["student", "teacher"] | None = None,
        num_global: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = projector
        self.predictor = predictor
        self.num_global = num_global
        self.targets = targets if predictor is None else targets or "teacher"
        self.teacher: nn.ModuleList | None = None
        if self.targets == "teacher":
            self.teacher = nn.ModuleList([copy.deepcopy(encoder), copy.deepcopy(projector)]).requires_grad_(False)

    def forward(self, *views: Tensor) -> tuple[PerView, PerView | None]:
        """Return codes and targets, (m, d) per view, of views, normalized images (m, c, h, w)."""
        return self.codes(self.features(*views), self.teacher_features(*views))

    def features(self, *views: Tensor) -> PerView:
        """Return the features of the student's encoder, (m, num_features) per view."""
        num_global = self.num_global or len(views)
        features, local = tuple(map(self.encoder, views[:num_global])), views[num_global:]
        if not local:
            return features
        with freeze_running_statistics(self.encoder):
            return (*features, *self.encoder(torch.cat(local)).chunk(len(local)))

    @torch.no_grad()
    def teacher_features(self, *views: Tensor) -> PerView | None:
        """Return the features of the teacher's encoder for the global views; None without a teacher."""
        return None if self.teacher is None else tuple(map(self.teacher[0], views[: self.num_global]))

    def codes(self, student_features: PerView, teacher_features: PerView | None) -> tuple[PerView, PerView | None]:
        """Return the codes, as the objective takes them, of features (m, num_features) of student and teacher."""
        z = tuple(map(self.projector, student_features))
        targets = None if self.targets is None else tuple(codes.detach() for codes in z[: self.num_global])
        if self.teacher is not None and teacher_features is not None:
            with torch.no_grad():
                targets = tuple(map(self.teacher[1], teacher_features))
        return z if self.predictor is None else tuple(map(self.predictor, z)), targets

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Set teacher = momentum * teacher + (1 - momentum) * student, parameters only; no-op without a teacher."""
        if self.teacher is None:
            return
        student: list[Tensor] = [*self.encoder.parameters(), *self.projector.parameters()]
        teacher: list[Tensor] = [*self.teacher.parameters()]
        torch._foreach_lerp_(teacher, student, 1 - momentum)
