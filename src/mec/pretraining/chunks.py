"""Gradient caching for batches larger than memory: the encoder sees one chunk at a time, the loss the whole batch.

A first pass computes the features of all chunks without a graph, then the loss and its gradient with respect to the
features of the whole batch. A second pass runs each chunk through the encoder again, with a graph, and backpropagates
the chunk's rows of that gradient (GradCache, Gao et al. 2021, arXiv 2101.06983). Projector and predictor, BatchNorm
included, see the whole batch; BatchNorm in the encoder normalizes each chunk by its own statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mec.models.siamese import Pair, Siamese

LossFunction = Callable[[Pair, Pair | None], Tensor]


@contextmanager
def freeze_running_statistics(network: nn.Module) -> Iterator[None]:
    """Leave the running statistics of BatchNorm unchanged in this context; training mode still normalizes by batch."""
    saved = [
        (m, m.momentum, m.num_batches_tracked, m.num_batches_tracked.clone())
        for m in network.modules()
        if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
    ]
    for norm, *_ in saved:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, count in saved:
            norm.momentum = momentum
            counter.copy_(count)


def chunked_loss(
    network: Siamese,
    chunks: Sequence[Callable[[], Pair]],
    loss_fn: LossFunction,
    backward: Callable[[Tensor], None],
    scale: float = 1.0,
) -> Tensor:
    """Return ``loss_fn(codes, targets)`` of the concatenated chunks. A chunk is a function that returns a pair of views
    (n, c, h, w), the same at every call. ``scale`` is a factor of gradients in float16, against underflow.

    ``backward`` is called for a scalar of each chunk but the last. Processes exchange gradients once per step, in the
    backward pass of the returned loss, which adds the gradients of the last chunk and of the heads.
    """
    f1, f2, teacher_features = _compute_features(network, chunks)
    loss = loss_fn(*network.codes((f1, f2), teacher_features))
    without_autocast = partial(torch.autocast, f1.device.type, enabled=False)
    with without_autocast():
        gradients = [g / scale for g in torch.autograd.grad(loss * scale, (f1, f2), retain_graph=True)]
    start = 0
    for number, chunk in enumerate(chunks):
        with freeze_running_statistics(network.encoder):
            features = [network.encoder(x) for x in chunk()]
        rows = slice(start, start := start + len(features[0]))
        # the gradient of this scalar with respect to the encoder is the chunk's term of the gradient of the loss
        surrogate = torch.stack([(f * g[rows]).sum() for f, g in zip(_upcast(features), gradients, strict=True)]).sum()
        if number < len(chunks) - 1:
            with without_autocast():
                backward(surrogate)
    return loss + (surrogate - surrogate.detach())


@torch.no_grad()
def _compute_features(network: Siamese, chunks: Sequence[Callable[[], Pair]]) -> tuple[Tensor, Tensor, Pair | None]:
    """Return the features of the whole batch: two views of the student, leaf tensors that require grad, in float32 or
    float64; and those of the teacher."""
    student: list[list[Tensor]] = []
    teacher: list[Pair] = []
    for chunk in chunks:
        x1, x2 = chunk()
        student.append(_upcast([network.encoder(x1), network.encoder(x2)]))
        teacher_features = network.teacher_features(x1, x2)
        if teacher_features is not None:
            teacher.append(teacher_features)
    f1, f2 = (torch.cat(view).requires_grad_() for view in zip(*student, strict=True))
    return f1, f2, (torch.cat([t[0] for t in teacher]), torch.cat([t[1] for t in teacher])) if teacher else None


def _upcast(features: Sequence[Tensor]) -> list[Tensor]:
    """Return the features in float32 at least."""
    return [f.to(torch.promote_types(f.dtype, torch.float32)) for f in features]
