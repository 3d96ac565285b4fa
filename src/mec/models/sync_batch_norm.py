"""Synchronized BatchNorm for any network, on any device.

PyTorch's SyncBatchNorm requires CUDA tensors. On other devices ``SyncBatchNorm`` computes the same, with native
operations on chunks of the batch that fit the CPU cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

CHUNK_ELEMENTS = 2**18
"""Number of elements of a chunk that fits the CPU cache."""

Moments = tuple[Tensor, Tensor, Tensor]
"""Count (1,), means (c,) and sums of squared deviations from the means (c,)."""


def convert_sync_batch_norm(network: nn.Module, device_type: str) -> nn.Module:
    """Synchronize every BatchNorm of the network over all processes in training mode; parameters and keys stay.

    Changes ``network`` in place and returns it; if it is itself a BatchNorm, returns its replacement. Every process
    must make the same forward and backward calls in the same order.
    """
    if device_type == "cuda":
        # unlike torch's own conversion, timm's preserves the activation and drop layers of BatchNormAct2d
        converted: nn.Module = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return converted
    if isinstance(network, _BatchNorm):
        return SyncBatchNorm(network)
    for name, child in network.named_children():
        setattr(network, name, convert_sync_batch_norm(child, device_type))
    return network


class SyncBatchNorm(_BatchNorm):
    """Replacement for ``norm`` that shares its tensors and applies its child layers (timm's drop and activation).

    In training mode, statistics are computed over the batches of all processes, which may differ in size. Gradients
    of weight and bias are those of the local batch: their sum over processes is the gradient of the global batch.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        for name, child in norm.named_children():
            self.add_module(name, child)
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize this process's batch (n, c, ...), n >= 1; shape and dtype are preserved."""
        is_distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        x = self._forward_synchronized(x) if self.training and is_distributed else super().forward(x)
        for child in self.children():
            x = child(x)
        return x

    def _forward_synchronized(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        running: tuple[Tensor, Tensor] | None = None
        momentum = 0.0
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            running = self.running_mean, self.running_var
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            # momentum=None is the cumulative average over all batches, as in torch
            momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        normalized: Tensor = _Normalize.apply(x, self.weight, self.bias, running, momentum, self.eps)
        return normalized

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input: expected at least 2 dimensions (n, c, ...), got {input.dim()}")


def _merge_moments(counts: Tensor, means: Tensor, squares: Tensor) -> Moments:
    """Merge the moments of k batches, counts (k, 1), means and squares (k, c) (Chan et al. 1979)."""
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return count, mean, (squares + counts * (means - mean).square()).sum(0)


def _gather_moments(local: Moments) -> Moments:
    """Merge the moments of all processes."""
    packed = torch.cat(local)
    world_size, channels = dist.get_world_size(), len(local[1])
    gathered = packed.new_empty(world_size * len(packed))
    dist.all_gather_into_tensor(gathered, packed)
    counts, means, squares = torch.split(gathered.view(world_size, -1), [1, channels, channels], dim=1)
    return _merge_moments(counts, means, squares)


def _match_memory_format(x: Tensor, like: Tensor) -> Tensor:
    """Return x in channels-last memory format if ``like`` has it, else contiguous."""
    channels_last = like.is_contiguous(memory_format=torch.channels_last)
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _chunk_size(x: Tensor) -> int:
    return max(1, CHUNK_ELEMENTS * len(x) // x.numel())


class _Normalize(Function):
    """weight * (x - mean) / sqrt(var + eps) + bias with the moments of all processes; updates ``running`` in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor, Tensor] | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _match_memory_format(x, like=x)
        chunk_size, broadcast_shape = _chunk_size(x), (-1, *[1] * (x.dim() - 2))
        dtype = torch.promote_types(x.dtype, torch.float32)
        out = torch.empty_like(x, dtype=dtype)
        # a mean far from zero costs float32 precision, so the mean of the first sample is subtracted before summation
        base = x[:1].to(dtype).transpose(0, 1).flatten(1).mean(1)
        base_column = base.view(broadcast_shape)
        x_chunks, out_chunks = torch.split(x, chunk_size), torch.split(out, chunk_size)
        means, variances = [], []
        for x_chunk, out_chunk in zip(x_chunks, out_chunks, strict=True):
            torch.sub(x_chunk, base_column, out=out_chunk)
            mean, variance = torch.batch_norm_update_stats(out_chunk, None, None, 0.0)
            means.append(mean)
            variances.append(variance)
        counts = base.new_tensor([[chunk.numel() // len(base)] for chunk in x_chunks], dtype=torch.float64)
        local = _merge_moments(counts, torch.stack(means).double() + base, torch.stack(variances) * counts)
        count, mean, squares = _gather_moments(local)
        if running is not None:
            running[0].lerp_(mean.to(running[0]), momentum)
            running[1].lerp_((squares / (count - 1)).to(running[1]), momentum)
        inverse_std = (squares / count + eps).rsqrt()
        scale = inverse_std if weight is None else inverse_std * weight
        shift = (base - mean) * scale if bias is None else (base - mean) * scale + bias
        scale, shift = scale.to(dtype).view(broadcast_shape), shift.to(dtype).view(broadcast_shape)
        for out_chunk in out_chunks:
            torch.addcmul(shift, out_chunk, scale, out=out_chunk)
        ctx.save_for_backward(x, weight, count, mean, inverse_std)
        ctx.eps = eps
        return out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, count, mean, inverse_std = ctx.saved_tensors
        grad = _match_memory_format(grad, like=x)
        chunk_size, broadcast_shape = _chunk_size(x), (-1, *[1] * (x.dim() - 2))
        dtype = torch.promote_types(x.dtype, torch.float32)
        base = mean.to(dtype)
        total, product = _gradient_sums(torch.split(grad, chunk_size), torch.split(x, chunk_size), base)
        product -= total * (mean - base)
        grad_weight, grad_bias = product * inverse_std, total
        sums = torch.stack([total, product])
        dist.all_reduce(sums)
        total, product = sums / count
        scale = inverse_std if weight is None else inverse_std * weight
        # scale * (grad - total - (x - mean) * product * inverse_std^2) = grad * scale + (x - base) * slope + shift
        slope = -scale * product * inverse_std.square()
        shift = (base - mean) * slope - scale * total
        scale, slope, shift, base = (values.to(dtype).view(broadcast_shape) for values in (scale, slope, shift, base))
        grad_x = torch.empty_like(x, dtype=dtype)
        for x_chunk, grad_chunk, out_chunk in zip(
            torch.split(x, chunk_size), torch.split(grad, chunk_size), torch.split(grad_x, chunk_size), strict=True
        ):
            torch.sub(x_chunk, base, out=out_chunk)
            torch.addcmul(shift, out_chunk, slope, out=out_chunk)
            out_chunk.addcmul_(grad_chunk.to(dtype), scale)
        needs_grad = ctx.needs_input_grad
        return (
            grad_x.to(x.dtype),
            grad_weight if needs_grad[1] else None,
            grad_bias if needs_grad[2] else None,
            None,
            None,
            None,
        )


def _gradient_sums(grads: Sequence[Tensor], xs: Sequence[Tensor], mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of grad and of grad * (x - mean), each (c,), accumulated over chunks in float64."""
    total, product = torch.zeros_like(mean, dtype=torch.float64), torch.zeros_like(mean, dtype=torch.float64)
    ones = torch.ones_like(mean)
    for grad, x in zip(grads, xs, strict=True):
        _, chunk_product, chunk_total = torch.ops.aten.native_batch_norm_backward(
            grad.to(mean.dtype), x.to(mean.dtype), ones, None, None, mean, ones, True, 0.0, [False, True, True]
        )
        total += chunk_total
        product += chunk_product
    return total, product
