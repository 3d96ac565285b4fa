"""Batches larger than memory: the encoder sees a chunk at a time, the objective the whole batch.

The loss depends on the images through the encoder's features alone. So the features are made without a graph, the
loss and its gradient in them are had for the whole batch, and each chunk passes the encoder once more, with a graph,
to take its share of that gradient further (GradCache, Gao et al. 2021, 2101.06983). Projector and predictor see the
whole batch, their BatchNorm included; in the encoder BatchNorm knows the statistics of a chunk only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mec.models.siamese import Pair, Siamese

Loss = Callable[[Pair, Pair | None], Tensor]


@contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm in training mode uses the batch's statistics and leaves its running ones as they are."""
    kept = [
        (m, m.momentum, m.num_batches_tracked, m.num_batches_tracked.clone())
        for m in network.modules()
        if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None
    ]
    for norm, *_ in kept:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, counter, count in kept:
            norm.momentum = momentum
            counter.copy_(count)


def loss_in_chunks(
    network: Siamese,
    chunks: Sequence[Callable[[], Pair]],
    loss_of: Loss,
    backward: Callable[[Tensor], None],
    scale: float = 1.0,
) -> Tensor:
    """The loss of the joined chunks; its own backward pass adds the gradient of the last chunk and of the heads.

    Args:
        network: in training mode.
        chunks: each gives its pair of views (n, c, h, w), the same whenever it is called.
        loss_of: codes and targets of the whole batch -> the loss.
        backward: takes a scalar backwards. It is called for all chunks but the last, in whose pass gradients may
            then be exchanged between processes, once a step.
        scale: by which a gradient in float16 is multiplied on its way, so that it does not vanish.
    """
    f1, f2, seen = _features(network, chunks)
    loss = loss_of(*network.codes((f1, f2), seen))
    without_autocast = partial(torch.autocast, f1.device.type, enabled=False)
    with without_autocast():
        slopes = [slope / scale for slope in torch.autograd.grad(loss * scale, (f1, f2), retain_graph=True)]
    rows = 0
    for number, chunk in enumerate(chunks):
        with running_statistics_kept(network.encoder):
            features = [network.encoder(x) for x in chunk()]
        own = slice(rows, rows := rows + len(features[0]))
        share = torch.stack([(f * g[own]).sum() for f, g in zip(_wide(features), slopes, strict=True)]).sum()
        if number < len(chunks) - 1:
            with without_autocast():
                backward(share)
    return loss + (share - share.detach())


@torch.no_grad()
def _features(network: Siamese, chunks: Sequence[Callable[[], Pair]]) -> tuple[Tensor, Tensor, Pair | None]:
    """Of the whole batch: the encoder's of both views, leaves in float32 at least, and the teacher's."""
    own: list[list[Tensor]] = []
    seen: list[Pair] = []
    for chunk in chunks:
        x1, x2 = chunk()
        own.append(_wide([network.encoder(x1), network.encoder(x2)]))
        of_teacher = network.teacher_features(x1, x2)
        if of_teacher is not None:
            seen.append(of_teacher)
    f1, f2 = (torch.cat(view).requires_grad_() for view in zip(*own, strict=True))
    return f1, f2, (torch.cat([s[0] for s in seen]), torch.cat([s[1] for s in seen])) if seen else None


def _wide(features: Sequence[Tensor]) -> list[Tensor]:
    return [f.to(torch.promote_types(f.dtype, torch.float32)) for f in features]
