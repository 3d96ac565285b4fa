"""Losses of batches larger than memory: the network sees one chunk at a time, the loss the whole batch.

A first pass computes the outputs of all chunks without a graph, then the loss and its gradient with respect to the
outputs of the whole batch. A second pass runs each chunk through the network again, with a graph, and backpropagates
the chunk's rows of that gradient (GradCache, Gao et al. 2021, arXiv 2101.06983).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mec.coding.checks import describe
from mec.coding.log_det import attach_gradient

Chunk = Sequence[Tensor] | Callable[[], Sequence[Tensor]]
"""The views of a few images, or a function that makes them, the same at both of its calls."""


def loss_in_chunks(
    network: nn.Module,
    chunks: Sequence[Chunk],
    loss: Callable[..., Tensor],
    *,
    encode: Callable[..., Sequence[Tensor]] | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
    scale: float = 1.0,
) -> Tensor:
    """Return the loss of a large batch, of which memory holds the activations of one chunk at a time.

    Value and gradient are those of ``loss`` of the whole batch, for twice the forward passes. Call ``backward()`` of
    the returned value, as of any loss. This function itself has already added the gradients of all chunks but the last:
    set gradients to zero before it, not between it and ``backward()``.

    BatchNorm in the network normalizes each chunk by the statistics of that chunk, as with smaller batches, and updates
    its running statistics once. Heads that are to see the whole batch belong in ``loss``. Dropout and other random
    numbers of PyTorch are the same in both passes.

    Args:
        network: module with the weights of ``encode``. In DistributedDataParallel, processes exchange gradients once,
            in ``backward()`` of the returned value; all need the same number of chunks.
        chunks: the batch. Each chunk holds its views, tensors (n, ...) of the same n images, for example
            ``list(zip(x1.split(64), x2.split(64)))``; or is a function that makes them, so that memory holds the views
            of one chunk only.
        loss: maps the outputs of the whole batch, a tuple of a tensor (m, ...) for each view, to a scalar: MECLoss(),
            or a function that also applies the heads.
        encode: maps the views of a chunk, ``encode(*views)``, to its outputs (n, ...), a tensor for each; by default
            ``network(view)`` for each view. It is called without gradients in the first pass.
        backward: computes the gradients of a scalar of each chunk but the last; with a gradient scaler,
            ``lambda x: scaler.scale(x).backward()``.
        scale: factor of the gradient in 16 bits, against underflow: ``scaler.get_scale()`` with a gradient scaler.

    Raises:
        ValueError: an argument has another type than above, or no chunk.

    Examples:
        >>> import torch
        >>> from mec import MECLoss, loss_in_chunks
        >>> network, (x1, x2) = torch.nn.Linear(8, 4), torch.randn(2, 12, 8)
        >>> whole = MECLoss()((network(x1), network(x2)))
        >>> chunked = loss_in_chunks(network, list(zip(x1.split(5), x2.split(5))), MECLoss())
        >>> torch.allclose(whole, chunked)
        True
        >>> chunked.backward()
    """
    _check(network, chunks)

    def outputs_of(chunk: Chunk) -> list[Tensor]:
        views = chunk() if callable(chunk) else chunk
        outputs = [network(view) for view in views] if encode is None else encode(*views)
        return [f.to(torch.promote_types(f.dtype, torch.float32)) for f in outputs]

    random_states, first_outputs = [], []
    with torch.no_grad():
        for chunk in chunks:
            random_states.append(_random_state())
            first_outputs.append(outputs_of(chunk))
    outputs = tuple(torch.cat(view).requires_grad_() for view in zip(*first_outputs, strict=True))
    value = loss(outputs)
    without_autocast = partial(torch.autocast, value.device.type, enabled=False)
    with without_autocast():
        of_outputs = torch.autograd.grad(value * scale, outputs, retain_graph=True, materialize_grads=True)
        gradients = [g / scale for g in of_outputs]
    del outputs
    rows = [len(chunk_outputs[0]) for chunk_outputs in first_outputs]
    chunk_gradients = zip(*(torch.split(g, rows) for g in gradients), strict=True)
    random_state = _random_state()
    with freeze_running_statistics(network):
        for number, (chunk, gradient) in enumerate(zip(chunks, chunk_gradients, strict=True), 1):
            _set_random_state(random_states[number - 1])
            is_last = number == len(chunks)
            with nullcontext() if is_last else getattr(network, "no_sync", nullcontext)():
                # the gradient of this scalar in the weights is the chunk's term of the gradient of the loss
                terms = [(f * g).sum() for f, g in zip(outputs_of(chunk), gradient, strict=True)]
                surrogate = torch.stack(terms).sum()
                if not is_last:
                    with without_autocast():
                        backward(surrogate)
    _set_random_state(random_state)
    return attach_gradient(value, surrogate)


def _check(network: object, chunks: object) -> None:
    if not isinstance(network, nn.Module):
        raise ValueError(f"network: expected a torch.nn.Module, got {describe(network)}")
    if not isinstance(chunks, Sequence) or not chunks:
        raise ValueError(f"chunks: expected a list of at least one chunk, got {describe(chunks)}")
    for chunk in chunks:
        if not callable(chunk) and (isinstance(chunk, Tensor) or not isinstance(chunk, Sequence)):
            raise ValueError(f"chunks: expected tuples of views, or functions that make them, got {describe(chunk)}")


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


def _generators() -> list[Any]:
    """Return the modules of PyTorch that hold the state of a generator: the CPU's, and the accelerator's if in use."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return [torch]
    module: Any = torch.get_device_module(accelerator)
    return [torch, module] if getattr(module, "is_initialized", lambda: True)() else [torch]


def _random_state() -> list[tuple[Any, Tensor]]:
    return [(module, module.get_rng_state()) for module in _generators()]


def _set_random_state(states: list[tuple[Any, Tensor]]) -> None:
    for module, state in states:
        module.set_rng_state(state)
